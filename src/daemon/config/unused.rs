//! Flags that have no meaning here. They are taken, so that a command line made
//! for flanneld never fails over them, and each is named once in the log.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::go_bool;

/// A flag that is taken and has no effect.
#[derive(Clone, Copy, Debug)]
pub struct UnusedFlag {
    pub name: &'static str,
    /// Why it has no effect.
    pub why: &'static str,
    /// flannel's variable; klog's other flags have none.
    variable: Option<&'static str>,
    takes: Takes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Text,
    Bool,
}

/// Kubernetes' flags of flanneld, and klog's.
pub const UNUSED: [UnusedFlag; 17] = [
    flannel("kube-api-url", "FLANNELD_KUBE_API_URL", Takes::Text, KUBERNETES),
    flannel("kubeconfig-file", "FLANNELD_KUBECONFIG_FILE", Takes::Text, KUBERNETES),
    flannel("kube-annotation-prefix", "FLANNELD_KUBE_ANNOTATION_PREFIX", Takes::Text, KUBERNETES),
    flannel("set-node-network-unavailable", "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", Takes::Bool, KUBERNETES),
    flannel("vmodule", "FLANNELD_VMODULE", Takes::Text, "--log takes a level for each module"),
    flannel("log_backtrace_at", "FLANNELD_LOG_BACKTRACE_AT", Takes::Text, "no backtraces are logged"),
    klog("logtostderr", Takes::Bool, STDERR),
    klog("alsologtostderr", Takes::Bool, STDERR),
    klog("legacy_stderr_threshold_behavior", Takes::Bool, STDERR),
    klog("stderrthreshold", Takes::Text, STDERR),
    klog("log_dir", Takes::Text, STDERR),
    klog("log_file", Takes::Text, STDERR),
    klog("log_file_max_size", Takes::Text, STDERR),
    klog("one_output", Takes::Bool, STDERR),
    klog("skip_log_headers", Takes::Bool, STDERR),
    klog("skip_headers", Takes::Bool, FORMAT),
    klog("add_dir_header", Takes::Bool, FORMAT),
];

const KUBERNETES: &str = "Kubernetes is not the store";
const STDERR: &str = "the log goes to standard error";
const FORMAT: &str = "--log-format chooses the format";

const fn flannel(name: &'static str, variable: &'static str, takes: Takes, why: &'static str) -> UnusedFlag {
    UnusedFlag { name, why, variable: Some(variable), takes }
}

const fn klog(name: &'static str, takes: Takes, why: &'static str) -> UnusedFlag {
    UnusedFlag { name, why, variable: None, takes }
}

/// Takes the flags of `UNUSED`; their values are dropped.
#[derive(Clone, Debug)]
pub struct Unused;

impl Args for Unused {
    fn augment_args(command: Command) -> Command {
        command.args(UNUSED.map(|flag| {
            let arg = Arg::new(flag.name).long(flag.name).hide(true).action(ArgAction::Set);
            let arg = if let Some(variable) = flag.variable { arg.env(variable) } else { arg };
            match flag.takes {
                Takes::Text => arg,
                Takes::Bool => arg
                    .num_args(0..=1)
                    .default_missing_value("true")
                    .require_equals(true)
                    .value_parser(go_bool()),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Unused {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Unused)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}
