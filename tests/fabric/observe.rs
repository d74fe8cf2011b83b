//! What a daemon tells of itself: to Prometheus, to a browser and to a terminal,
//! each the real one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_harness::{Host, wait_until};
use serde_json::{Value, json};

use crate::lab::{Fabric, SOON, VXLAN, peer};

const PORT: u16 = 8471;
const SERVED: &str = "-healthz-port=8471";

#[test]
fn prometheus_takes_every_metric() {
    let mut fabric = Fabric::new("metrics", VXLAN, 2);
    fabric.start(0, &[SERVED]);
    fabric.start(1, &[]);
    (0..2).for_each(|i| fabric.wait_in_sync(i));
    fabric.hosts[0].run("ip", ["route", "del", &fabric.subnet_of(1)]).unwrap();
    fabric.wait_for_route(0, &fabric.subnet_of(1));

    let host = fabric.hosts[0].clone();
    let config = host.dir().join("prometheus.yml");
    let targets = format!(
        "{{scrape_interval: 1s, job_name: weft, static_configs: [{{targets: ['127.0.0.1:{PORT}']}}]}}"
    );
    std::fs::write(&config, format!("scrape_configs: [{targets}]\n")).unwrap();
    let mut command = host.command("prometheus");
    command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(host.dir().join("tsdb"));
    let prometheus = host.spawn("prometheus", command.arg("--web.listen-address=127.0.0.1:9090")).unwrap();
    let is_up = || query(&host, "up") == Some(1.0);
    if let Err(error) = wait_until(SOON, "a scrape", is_up) {
        panic!("{error}: {:#?}: {}", api(&host, "targets"), prometheus.log_tail(20));
    }

    for (expression, value) in [
        ("weft_build_info", 1.0),
        ("weft_ready", 1.0),
        ("weft_leases{family='ipv4'}", 2.0),
        ("weft_leases{family='ipv6'}", 0.0),
        ("weft_store_connected", 1.0),
        ("weft_store_lag_seconds", 0.0),
        ("weft_kernel_errors_total", 0.0),
        ("weft_kernel_operations_total{kind='set_route'}", 2.0),
        ("weft_repairs_total{kind='route'}", 1.0),
        ("weft_fights", 0.0),
        (
            "weft_convergence_duration_seconds_bucket{le='+Inf'} == bool ignoring(le) weft_convergence_duration_seconds_count",
            1.0,
        ),
        ("weft_convergence_duration_seconds_count > bool 0", 1.0),
        ("weft_reconcile_duration_seconds_sum > bool 0", 1.0),
        ("weft_subnet_lease_expiry_timestamp_seconds - time() > bool 86000", 1.0),
        ("process_resident_memory_bytes > bool 1e6", 1.0),
        ("abs(process_start_time_seconds - time()) < bool 60", 1.0),
    ] {
        assert_eq!(query(&host, expression), Some(value), "{expression}");
    }
    let metadata = api(&host, "metadata");
    for (name, described) in metadata["data"].as_object().unwrap() {
        let described = &described[0];
        assert!(described["help"].as_str().is_some_and(|help| help.ends_with('.')), "{name}: {described}");
        assert_ne!(described["type"], "unknown", "{name}");
    }

    fabric.etcd_away();
    wait_until(SOON, "the lag", || query(&host, "weft_store_lag_seconds").is_some_and(|lag| lag > 0.0))
        .unwrap();
    assert_eq!(query(&host, "weft_store_connected"), Some(0.0));
    fabric.start_etcd();
    let resumed = || query(&host, "weft_store_watch_resumes_total").is_some_and(|resumes| resumes >= 1.0);
    wait_until(SOON, "the store", resumed).unwrap();
}

#[test]
fn a_browser_shows_the_status_and_runs_nothing_of_a_peers() {
    let mut fabric = Fabric::new("page", VXLAN, 1);
    fabric.put("subnets/10.42.80.0-24", &peer(80));
    let hostile = "<img src=x onerror=document.title=1><script>document.title=1</script>";
    fabric.put("subnets/10.42.81.0-24", &peer(81).replace("vxlan", hostile));
    fabric.put("subnets/10.42.82.0-24", "<script>document.title=1</script>");
    fabric.start(0, &[SERVED]);
    fabric.wait_in_sync(0);
    fabric.hosts[0].run("ip", ["route", "del", "10.42.80.0/24"]).unwrap();
    fabric.wait_for_route(0, "10.42.80.0/24");

    let page = browse(&fabric.hosts[0], &format!("http://127.0.0.1:{PORT}/"));
    for text in [
        "<title>weft 192.168.77.1</title>",
        ">Healthy</div>",
        &fabric.subnet_of(0),
        ">192.168.77.80</td>",
        "2 nodes",
        "1 left out",
        ">&lt;img src=x onerror=document.title=1&gt;&lt;script&gt;document.title=1&lt;/script&gt;</td>",
        "10.42.82.0-24: not JSON",
        "1 change by others put right",
        ">route 10.42.80.0/24<",
    ] {
        assert!(page.contains(text), "{text:?} in {page}");
    }

    let asked = |url: &str, more: &[&str]| {
        let all = [&["-s", "-o", "/dev/null", "-w", "%{http_code}", url], more].concat();
        fabric.hosts[0].run("curl", all).unwrap()
    };
    let json = format!("http://127.0.0.1:{PORT}/status.json");
    assert_eq!(asked(&json, &[]), "200");
    assert_eq!(asked(&json, &["-H", "Host: rebound.example"]), "403", "another's name for this host");
}

#[test]
fn hundreds_of_peers_are_paged_those_in_trouble_first() {
    let mut fabric = Fabric::new("many", &VXLAN.replace("10.42.0.0/16", "10.42.0.0/15"), 1);
    fabric.put_peers(300);
    fabric.put("subnets/10.42.63.0-24", &peer(63).replace("vxlan", "host-gw"));
    fabric.start(0, &[SERVED]);
    fabric.wait_in_sync(0);
    let host = fabric.hosts[0].clone();

    let ask = |query: &str| -> Value {
        let url = format!("http://127.0.0.1:{PORT}/status.json{query}");
        serde_json::from_str(&host.run("curl", ["-sf", &url]).unwrap()).unwrap()
    };
    let subnets = |status: &Value| -> Vec<String> {
        let peers = status["peers"].as_array().unwrap().iter();
        peers.map(|peer| peer["subnets"][0].as_str().unwrap().to_owned()).collect()
    };
    let all = ask("");
    assert_eq!((subnets(&all).len(), &all["peer_count"]["total"]), (301, &json!(301)));
    assert!(subnets(&all).iter().map(|net| net.parse::<ipnetwork::IpNetwork>().unwrap()).is_sorted());
    let page = ask("?take=100");
    assert_eq!((subnets(&page).len(), &subnets(&page)[0]), (100, &"10.42.63.0/24".to_owned()));
    assert_eq!(page["peer_count"]["left_out"], 1);
    assert_eq!(page["peer_count"]["map"].as_str().unwrap().len(), 301);
    let mut told = subnets(&page);
    told.extend([100, 200, 300].iter().flat_map(|skip| subnets(&ask(&format!("?take=100&skip={skip}")))));
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), 301, "each once");
    let found = ask("?take=100&find=10.43.77");
    assert_eq!(
        (subnets(&found), &found["peer_count"]["found"]),
        (vec!["10.43.77.0/24".to_owned()], &json!(1))
    );

    let browsed = browse(&host, &format!("http://127.0.0.1:{PORT}/"));
    for text in [">1–50 of 301<", "301 nodes · 1 left out", ">10.42.63.0/24<"] {
        assert!(browsed.contains(text), "{text:?} in {browsed}");
    }
    assert_eq!(browsed.matches("<tr>").count(), 51);
    let mut status = host.command(env!("CARGO_BIN_EXE_weft"));
    let output =
        status.args(["status", "--admin-socket"]).arg(host.dir().join("admin.sock")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("301 peers, 0 missing in the kernel, 1 left out"), "{text}");
    assert!(text.contains("… and 251 more"), "{text}");
}

/// Undone for as long as the daemon will put it right at once, and a little more.
#[test]
fn a_fight_is_named_in_the_log_the_metrics_and_the_status() {
    let mut fabric = Fabric::new("fight", VXLAN, 2);
    fabric.start(0, &[SERVED]);
    fabric.start(1, &[]);
    (0..2).for_each(|i| fabric.wait_in_sync(i));
    let (host, subnet) = (fabric.hosts[0].clone(), fabric.subnet_of(1));
    let name = format!("route {subnet}");

    let fought = || {
        // Not there, while the daemon rests.
        let _ = host.run("ip", ["route", "del", &subnet]);
        fabric.status(0)["kernel"]["fights"][0]["count"].as_u64() >= Some(6)
    };
    wait_until(SOON, "a fight", fought).unwrap();
    // From then on the count stays as it is.
    let back = || host.ip_json(&format!("route show {subnet}")).unwrap() != json!([]);
    wait_until(SOON, "the last repair", back).unwrap();

    let (status, ok) = fabric.try_status(0).unwrap();
    let fight = &status["kernel"]["fights"][0];
    assert_eq!((fight["object"].as_str(), status["kernel"]["fight_count"].as_u64()), (Some(&*name), Some(1)));
    assert!(!ok, "trouble: {status:#}");
    let metrics = host.run("curl", ["-sf", &format!("http://127.0.0.1:{PORT}/metrics")]).unwrap();
    let count = fight["count"].as_u64().unwrap();
    assert!(metrics.contains("weft_fights 1\n"), "{metrics}");
    assert!(metrics.contains(&format!("weft_fight_repairs{{object=\"{name}\"}} {count}\n")), "{metrics}");
    let log = fabric.daemons[0].log_tail(500);
    assert_eq!(log.matches(&format!("{name}: undone again and again by something else")).count(), 1, "{log}");
    let page = browse(&host, &format!("http://127.0.0.1:{PORT}/"));
    assert!(
        page.contains(&format!(">{name}: undone {count} times by something else on this host<")),
        "{page}"
    );
}

#[test]
fn from_elsewhere_there_are_metrics_and_no_names() {
    let mut fabric = Fabric::new("elsewhere", VXLAN, 1);
    fabric.start(0, &[SERVED, "-healthz-ip=0.0.0.0"]);
    fabric.wait_in_sync(0);
    let base = format!("http://{}:{PORT}", fabric.hosts[0].ip4());
    let codes = ["/", "/status", "/status.json", "/metrics", "/healthz"].map(|path| {
        let args =
            ["-s", "-o", "/dev/null", "-w", "%{http_code}", &format!("{base}{path}")].map(str::to_owned);
        fabric.lab.switch().run("curl", args).unwrap()
    });
    assert_eq!(codes, ["403", "403", "403", "200", "200"]);
}

#[test]
fn a_daemon_that_waits_says_so_in_the_browser() {
    let mut fabric = Fabric::without_etcd("waits", 1);
    fabric.start(0, &[SERVED]);
    let url = format!("http://127.0.0.1:{PORT}/");
    wait_until(SOON, "a listener", || fabric.hosts[0].run("curl", ["-sf", &url]).is_ok()).unwrap();
    let page = browse(&fabric.hosts[0], &url);
    assert!(page.contains(">Starting</div>") && page.contains("waiting for the store: etcd"), "{page}");
}

#[test]
fn a_pipe_gets_a_line_for_each_change() {
    let mut fabric = Fabric::new("watch", VXLAN, 1);
    fabric.start(0, &[]);
    fabric.wait_in_sync(0);
    let socket = fabric.hosts[0].dir().join("admin.sock");
    let mut command = fabric.hosts[0].command(env!("CARGO_BIN_EXE_weft"));
    command.args(["status", "--watch=1", "--admin-socket"]).arg(socket);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();

    let subnet = fabric.subnet_of(0);
    assert_eq!(
        next(),
        format!("{subnet} | 0 peers, 0 missing in the kernel, 0 left out | 0 repairs | healthy")
    );
    std::thread::sleep(Duration::from_millis(2500));
    fabric.put("subnets/10.42.80.0-24", &peer(80));
    assert!(next().contains("| 1 peers, 0 missing"), "nothing was printed meanwhile");
    fabric.daemons[0].terminate(SOON).unwrap();
    assert!(next().contains("is `weft daemon` running"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// What the page has become by its script.
fn browse(host: &Host, url: &str) -> String {
    let mut command: Command = host.command("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", host.dir().join("chromium").display()));
    let output = command.arg(url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The value of an expression that has one.
fn query(host: &Host, expression: &str) -> Option<f64> {
    let url = "http://127.0.0.1:9090/api/v1/query";
    let text = host.run("curl", ["-sfG", url, "--data-urlencode", &format!("query={expression}")]).ok()?;
    let answer: Value = serde_json::from_str(&text).ok()?;
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

fn api(host: &Host, what: &str) -> Value {
    let text = host.run("curl", ["-s", &format!("http://127.0.0.1:9090/api/v1/{what}")]).unwrap();
    serde_json::from_str(&text).unwrap()
}
