//! As many daemons as there are subnets, all started at once.

use std::collections::BTreeSet;
use std::time::Duration;

use netns_harness::{Daemon, Host, Lab, wait_until};

const NODES: usize = 50;
const CONFIG: &str = r#"{"Network":"10.43.0.0/16","SubnetMin":"10.43.1.0","SubnetMax":"10.43.50.0","Backend":{"Type":"vxlan"}}"#;
const PREFIX: &str = "/coreos.com/network";
const LONG: Duration = Duration::from_secs(60);

#[test]
fn fifty_daemons_at_once_share_fifty_subnets_and_one_more_waits() {
    let race = Race::new();
    let mut daemons: Vec<Daemon> = race.hosts[..NODES].iter().map(|host| race.start(host)).collect();

    let env = |host: &Host| std::fs::read_to_string(host.dir().join("subnet.env")).ok();
    for (host, daemon) in race.hosts.iter().zip(&mut daemons) {
        let leased = wait_until(LONG, "subnet.env", || env(host).is_some());
        assert!(leased.is_ok(), "{}", daemon.log_tail(20));
        assert!(daemon.exited().expect("our child").is_none(), "{}", daemon.log_tail(20));
    }
    let subnets: BTreeSet<_> = race.hosts[..NODES].iter().filter_map(env).collect();
    assert_eq!(subnets.len(), NODES, "each has another: {subnets:?}");
    let keys = race.etcdctl(&["get", "--prefix", &format!("{PREFIX}/subnets/"), "--keys-only"]);
    assert_eq!(keys.split_whitespace().count(), NODES, "{keys}");
    let held = race.etcdctl(&["lease", "list"]);
    assert_eq!(held.lines().count(), NODES + 1, "a headline and one lease a node: {held}");

    let mut late = race.start(&race.hosts[NODES]);
    let why = "waiting for a lease: no free subnet: every subnet of 10.43.0.0/16";
    wait_until(LONG, "a word on why", || late.log_tail(20).contains(why)).expect("it says so");
    assert!(late.exited().expect("our child").is_none(), "{}", late.log_tail(20));

    // One leaves, and what it had goes to who waits.
    daemons[7].terminate(LONG).expect("it stops");
    let left = env(&race.hosts[7]).expect("its subnet");
    let subnet = left.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).expect("a subnet");
    race.etcdctl(&["del", &format!("{PREFIX}/subnets/{}", subnet.replace(".1/24", ".0-24"))]);
    wait_until(LONG, "the subnet that is free", || env(&race.hosts[NODES]).is_some()).expect("it is taken");
    assert_eq!(env(&race.hosts[NODES]), Some(left));
    for daemon in daemons.iter_mut().enumerate().filter(|(i, _)| *i != 7).map(|(_, daemon)| daemon) {
        assert!(daemon.exited().expect("our child").is_none(), "{}", daemon.log_tail(20));
    }
}

struct Race {
    _etcd: Daemon,
    hosts: Vec<Host>,
    lab: Lab,
}

impl Race {
    fn new() -> Race {
        let lab = Lab::new("race").expect("a lab");
        let hosts = (1..=NODES + 1).map(|i| lab.host(&format!("h{i}")).expect("a host")).collect();
        let switch = lab.switch();
        let url = format!("http://{}:2379", lab.switch_ip4());
        let mut command = switch.command("etcd");
        command
            .arg("--data-dir")
            .arg(lab.dir().join("etcd"))
            .args(["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let etcd = switch.spawn("etcd", &mut command).expect("etcd");
        let race = Race { _etcd: etcd, hosts, lab };
        wait_until(LONG, "etcd", || race.try_etcdctl(&["endpoint", "health"]).is_ok()).expect("etcd");
        race.etcdctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
        race
    }

    fn start(&self, host: &Host) -> Daemon {
        let mut command = host.command(env!("CARGO_BIN_EXE_weft"));
        command
            .args(["daemon", "--etcd-endpoints", &format!("http://{}:2379", self.lab.switch_ip4())])
            .arg("--subnet-file")
            .arg(host.dir().join("subnet.env"))
            .arg("--admin-socket")
            .arg(host.dir().join("admin.sock"));
        host.spawn("weft", &mut command).expect("weft")
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        self.try_etcdctl(args).expect("etcdctl")
    }

    fn try_etcdctl(&self, args: &[&str]) -> Result<String, netns_harness::Error> {
        let url = format!("http://{}:2379", self.lab.switch_ip4());
        let all = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &url];
        self.lab.switch().run("env", all.iter().chain(args))
    }
}
