#!/bin/sh
# flannel's name for it, with flannel's options.
exec weft docker-opts "$@"
