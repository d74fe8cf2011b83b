//! A fabric of any size on one host: the host is real, its peers are leases.

use std::fs::File;
use std::os::fd::OwnedFd;

use netns_harness::{Host, Lab};
use serde_json::Value;
use weft::backends::{Backend, Identity, Node, Peers, from_config};
use weft::desired::{Desired, Observed, Op, diff};
use weft::kernel::{Kernel, Nexthops, Rtnl, Scope};
use weft::model::{Family, LeaseAttrs, Mac, NetworkConfig, PerFamily, SubnetKey};
use weft::reconciler::Inputs;

pub struct Fabric {
    pub host: Host,
    config: NetworkConfig,
    checksums_off: bool,
    pub backend: Box<dyn Backend>,
    pub inputs: Inputs,
    // Removes the namespaces when dropped.
    pub lab: Lab,
}

impl Fabric {
    /// `label` names the lab; `kind` is `vxlan` or `host-gw`, options as in
    /// `,"DirectRouting":true`.
    pub fn new(label: &str, kind: &str, options: &str, peers: u32) -> Fabric {
        Fabric::build(label, kind, options, peers, false)
    }

    /// vxlan whose tunnels leave no checksum to the device.
    pub fn with_checksums_off(label: &str, peers: u32) -> Fabric {
        Fabric::build(label, "vxlan", "", peers, true)
    }

    fn build(label: &str, kind: &str, options: &str, peers: u32, checksums_off: bool) -> Fabric {
        let lab = Lab::new(label).unwrap();
        let host = lab.host("h1").unwrap();
        let config = format!(
            r#"{{"Network":"10.64.0.0/10","IPv6Network":"fd00:64::/48","EnableIPv6":true,
                "Backend":{{"Type":"{kind}"{options}}}}}"#
        );
        let config = NetworkConfig::parse(&config).unwrap();
        let backend = from_config(&config, checksums_off).unwrap();
        let addresses = PerFamily { v4: Some(host.ip4()), v6: Some(host.ip6()) };
        let node = Node {
            uplink: "eth0".parse().unwrap(),
            uplink_mtu: 1500,
            address: addresses,
            public_ip: addresses,
            on_link: vec!["192.168.77.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()],
        };
        let mac = |last| Some(Mac([0x0e, 0, 0, 0, 0xff, last]));
        let identity = Identity { mac: PerFamily { v4: mac(1), v6: mac(2) } };
        let peers = (1..=peers).map(|n| peer(kind, n)).collect();
        Fabric {
            host,
            config,
            checksums_off,
            backend,
            inputs: Inputs { node, identity, own: key(0), peers, whole: true },
            lab,
        }
    }

    /// Another one of the same config.
    pub fn backend(&self) -> Box<dyn Backend> {
        from_config(&self.config, self.checksums_off).unwrap()
    }

    pub fn netns(&self) -> OwnedFd {
        File::open(self.host.path()).unwrap().into()
    }

    pub fn kernel(&self, nexthops: Nexthops) -> Rtnl {
        Rtnl::open(Some(self.netns()), nexthops).unwrap()
    }

    pub fn desired(&self) -> Desired {
        let Inputs { node, identity, own, peers, .. } = &self.inputs;
        let (desired, rejected) = self.backend.desired(node, identity, own, peers);
        assert_eq!(rejected, []);
        desired
    }

    pub fn scope(&self) -> Scope {
        Scope::new(&self.desired(), &self.backend.ownership(), self.inputs.node.uplink)
    }

    pub fn observe(&self, kernel: &mut Rtnl) -> Observed {
        kernel.observe(&self.scope()).unwrap()
    }

    pub fn plan(&self, kernel: &mut Rtnl) -> Vec<Op> {
        diff(&self.observe(kernel), &self.desired(), &self.backend.ownership()).ops
    }

    pub fn ip(&self, args: &str) -> Value {
        self.host.ip_json(args).unwrap()
    }

    pub fn bridge(&self, args: &str) -> Value {
        self.host.bridge_json(args).unwrap()
    }

    /// Another hand at work: `ip ARGS`.
    pub fn by_hand(&self, args: &str) {
        self.host.run("ip", args.split_whitespace()).unwrap();
    }
}

/// Lease `n`'s subnets.
pub fn key(n: u32) -> SubnetKey {
    let v4 = format!("10.{}.{}.0/24", 64 + n / 256, n % 256).parse().unwrap();
    let v6 = format!("fd00:64:0:{n:x}::/64").parse().unwrap();
    SubnetKey::new(PerFamily { v4: Some(v4), v6: Some(v6) }).unwrap()
}

pub fn mac(n: u32, family: Family) -> Mac {
    let [_, _, high, low] = n.to_be_bytes();
    Mac([0x0e, 0, family as u8, 0, high, low])
}

fn peer(kind: &str, n: u32) -> (SubnetKey, LeaseAttrs) {
    let (v4, v6) = match kind {
        // No more hosts than the network holds: some have several subnets.
        "host-gw" => (format!("192.168.77.{}", 100 + n % 150), format!("fd77::1:{:x}", n % 150)),
        _ => (format!("172.16.{}.{}", n / 256, n % 256), format!("fd99::{n:x}")),
    };
    let data = |family| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n, family));
    let json = format!(
        r#"{{"PublicIP":"{v4}","PublicIPv6":"{v6}","BackendType":"{kind}","BackendData":{},"BackendV6Data":{}}}"#,
        data(Family::V4),
        data(Family::V6)
    );
    (key(n), LeaseAttrs::parse(json.as_bytes()).unwrap())
}

/// Results of `Kernel::apply`, all of which must be fine.
pub fn apply(kernel: &mut Rtnl, ops: &[Op]) {
    for result in kernel.apply(ops) {
        result.unwrap();
    }
}

/// The peers of a fabric, to change them.
pub fn without(peers: &Peers, n: u32) -> Peers {
    let mut peers = peers.clone();
    peers.remove(&key(n));
    peers
}
