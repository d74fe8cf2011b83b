//! containerd as the kubelet drives it: pods by the Container Runtime Interface.

use std::fs;
use std::process::Command;

use netns_harness::{Lab, wait_until};
use prost::Message;
use serde_json::json;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::machine::{Files, HOST_PORT, Machine};
use crate::node::SOON;
use crate::{Container, SERVE, reach, reach_host_port};

#[test]
fn containerd_as_kubernetes_drives_it() {
    let lab = Lab::new("cri").unwrap();
    let machines = ["h1", "h2"].map(|name| Machine::new(&lab, name, CONTAINERD, START));
    let pods = machines.each_ref().map(|machine| {
        machine.node.wait_in_sync();
        Pod::run(machine)
    });
    let execs = pods.each_ref().map(|pod| {
        [
            "ctr",
            "--address",
            &pod.cri.socket,
            "--namespace=k8s.io",
            "task",
            "exec",
            "--exec-id=test",
            &pod.web,
        ]
    });
    let [a, b] = [0, 1].map(|n| Container { machine: &machines[n], ip: pods[n].ip(), exec: &execs[n] });
    reach(&lab, &a, &b);
    for container in [&a, &b] {
        reach_host_port(&lab, container);
    }

    // containerd dies and is started again; its pods live on.
    kill_containerd(&machines[0]);
    pods[0].cri.wait_until_ready();
    reach(&lab, &a, &b);
    reach_host_port(&lab, &a);

    // With the pod and its network namespace.
    pods[1].die();
    kill_containerd(&machines[1]);
    pods[1].cri.wait_until_ready();
    for (machine, pod, ip) in [(&machines[0], &pods[0], &a.ip), (&machines[1], &pods[1], &b.ip)] {
        assert!(fs::exists(machine.dir(&format!("networks/weft/{ip}"))).unwrap(), "{ip} is the pod's still");
        pod.remove();
        machine.assert_empty();
    }
}

const IMAGE: &str = "weft.test/web:1";

const CONTAINERD: Files = &[(
    "containerd.toml",
    r#"
    version = 2
    root = "/var/lib/containerd"
    state = "/run/containerd"
    [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "weft.test/web:1"
    disable_apparmor = true
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
    "#,
)];

/// As an init system does.
const START: &str = r#"sh -c '
    while :; do
        containerd --config "$DIR/containerd.toml" --address "$DIR/cri.sock" &
        echo $! >"$DIR/containerd.pid"
        wait $!
    done'"#;

fn kill_containerd(machine: &Machine) {
    let pid = fs::read_to_string(machine.dir("containerd.pid")).unwrap();
    machine.run("kill", &["-KILL", pid.trim()]);
    let other = || fs::read_to_string(machine.dir("containerd.pid")).unwrap() != pid;
    wait_until(SOON, "another containerd", other).unwrap();
}

/// A pod of one container that hands out its host's name at a host port.
struct Pod<'a> {
    machine: &'a Machine,
    cri: Cri,
    sandbox: Id,
    web: String,
}

impl Pod<'_> {
    fn run(machine: &Machine) -> Pod<'_> {
        let cri = Cri::new(machine.dir("cri.sock"));
        cri.wait_until_ready();
        import_image(machine);
        let config = PodSandboxConfig {
            metadata: Some(Metadata { name: "web".into(), uid: "1".into(), namespace: "test".into() }),
            port_mappings: vec![PortMapping { container_port: 80, host_port: i32::from(HOST_PORT) }],
            linux: Some(Linux { cgroup_parent: format!("/{}", machine.cgroup) }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let sandbox: Id = cri.call("RunPodSandbox", request).unwrap();
        let container = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(Named { name: "web".into() }),
                image: Some(Named { name: IMAGE.into() }),
                command: SERVE.map(str::to_owned).into(),
            }),
            sandbox_config: Some(config),
        };
        let web: Id = cri.call("CreateContainer", container).unwrap();
        let () = cri.call("StartContainer", web.clone()).unwrap();
        Pod { machine, cri, sandbox, web: web.id }
    }

    fn ip(&self) -> String {
        let answer: PodSandboxStatusResponse =
            self.cri.call("PodSandboxStatus", self.sandbox.clone()).unwrap();
        answer.status.unwrap().network.unwrap().name
    }

    fn die(&self) {
        for id in [&self.web, &self.sandbox.id] {
            let kill = ["--namespace=k8s.io", "task", "kill", "--signal=KILL", id];
            self.machine.run("ctr", &[&["--address", &self.cri.socket][..], &kill].concat());
        }
        self.machine.run("sh", &["-c", "umount /run/netns/cni-*"]);
    }

    fn remove(&self) {
        let () = self.cri.call("StopPodSandbox", self.sandbox.clone()).unwrap();
        let () = self.cri.call("RemovePodSandbox", self.sandbox.clone()).unwrap();
    }
}

/// The machine's files as an image, in the form of `docker save`.
fn import_image(machine: &Machine) {
    let folder = machine.dir("image");
    fs::create_dir(&folder).unwrap();
    fs::copy(machine.dir("image.tar"), format!("{folder}/layer.tar")).unwrap();
    let layer = machine.run("sha256sum", &[&format!("{folder}/layer.tar")]);
    let config = json!({
        "architecture": machine.run("dpkg", &["--print-architecture"]),
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", &layer[..64])] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    fs::write(format!("{folder}/config.json"), config.to_string()).unwrap();
    fs::write(format!("{folder}/manifest.json"), manifest.to_string()).unwrap();
    let archive = format!("{folder}.save");
    let tar = Command::new("tar").args(["-C", &folder, "-cf", &archive, "."]).status();
    assert!(tar.unwrap().success());
    let socket = machine.dir("cri.sock");
    let ctr =
        |args: &[&str]| machine.run("ctr", &[&["--address", &socket, "--namespace=k8s.io"], args].concat());
    ctr(&["images", "import", "--snapshotter=native", &archive]);
    let known = || ctr(&["images", "ls"]).contains("io.cri-containerd.image=managed");
    wait_until(SOON, "the image to be known to the CRI", known).unwrap();
}

/// A client of the CRI (`runtime.v1` of kubernetes/cri-api).
struct Cri {
    runtime: tokio::runtime::Runtime,
    socket: String,
}

impl Cri {
    fn new(socket: String) -> Cri {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Cri { runtime, socket }
    }

    fn wait_until_ready(&self) {
        let ready = || self.call::<(), ()>("Status", ()).is_ok();
        wait_until(SOON, "containerd's CRI", ready).unwrap();
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, String>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).unwrap();
        self.runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket)).unwrap();
            let channel = endpoint.connect().await.map_err(|error| format!("{method}: {error:?}"))?;
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.map_err(|error| format!("{method}: {error}"))?;
            let answer = client.unary(tonic::Request::new(request), path, ProstCodec::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| format!("{method}: {status}"))
        })
    }
}

// Of each message the fields that are used here, by its own numbers.

/// Of a pod or a container: the one field of most requests and answers.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// `ContainerMetadata`, `ImageSpec`, and `PodSandboxNetworkStatus` with its IP.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// Of TCP.
#[derive(Clone, PartialEq, Message)]
struct PortMapping {
    #[prost(int32, tag = "2")]
    container_port: i32,
    #[prost(int32, tag = "3")]
    host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<PortMapping>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Named>,
    #[prost(message, optional, tag = "2")]
    image: Option<Named>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<Named>,
}
