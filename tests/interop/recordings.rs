//! The pictures that `tests/golden.rs` holds weft to are what flanneld does.

use crate::cluster::flanneld;
use crate::golden::{SCENES, file, play};

#[test]
fn flanneld_is_as_recorded() {
    let record = std::env::var("RECORD").is_ok_and(|value| !value.is_empty());
    for scene in &SCENES {
        let seen = play(scene, |stage, host| {
            let mut command = flanneld(host, &stage.url());
            host.spawn("flanneld", command.args(scene.args)).unwrap()
        });
        let seen = format!("{seen:#}\n");
        let path = file(scene);
        if record {
            std::fs::write(&path, seen).unwrap();
            continue;
        }
        let recorded = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}: RECORD=1 writes it", path.display()));
        assert_eq!(seen, recorded, "{}: RECORD=1 writes it anew", path.display());
    }
}
