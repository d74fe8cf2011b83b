//! The pictures at the end: who is where, who reaches whom, the figures.

use comfy_table::{CellAlignment, Table, presets};
use netns_harness::PingReport;

use super::BackendChoice;
use super::fabric::{Fabric, Node, container_name};
use super::heal::{self, Healed};
use super::measure::{Figures, Matrix, micros};

const BOXES_PER_ROW: usize = 3;
const BOX_WIDTH: usize = 24;
/// More containers than this would be wider than a terminal.
const MATRIX_WIDTH: usize = 8;

/// The hosts as boxes on the switch, three a row, and what joins them.
pub fn map(fabric: &Fabric) -> String {
    let (line, tunnel) = match fabric.backend {
        BackendChoice::Vxlan => ('╌', "VXLAN tunnels, each host to each other, UDP 8472"),
        BackendChoice::HostGw => ('─', "plain routes, each host to each other, no tunnel"),
    };
    let mut out = String::from("  switch 192.168.77.0/24\n");
    for (row, nodes) in fabric.nodes.chunks(BOXES_PER_ROW).enumerate() {
        let boxes: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| host_box(fabric, row * BOXES_PER_ROW + i, node))
            .collect();
        out += &format!("  {}\n", joined("┬", '─', boxes.len()));
        out += &format!("  {}\n", joined("│", ' ', boxes.len()).trim_end());
        for line in 0..boxes.iter().map(Vec::len).min().unwrap_or(0) {
            let cells: Vec<&str> = boxes.iter().map(|lines| lines[line].as_str()).collect();
            out += &format!("  {}\n", cells.join("  "));
        }
        out += &format!("  {}\n", bracket(line, boxes.len()));
    }
    let width = fabric.nodes.len().min(BOXES_PER_ROW) * (BOX_WIDTH + 2);
    out + format!("  {tunnel:^width$}").trim_end() + "\n"
}

/// A row a host: where it is reached, what it leased, who lives there.
pub fn hosts(fabric: &Fabric) -> Table {
    let mut table = table();
    table.set_header(["host", "reached at", "tunnel", "subnet", "containers"]);
    for (h, node) in fabric.nodes.iter().enumerate() {
        let containers = node.containers.iter().enumerate().map(|(c, container)| {
            let ips: Vec<String> = container.ips.iter().map(ToString::to_string).collect();
            format!("{} {}", container_name(h, c), ips.join("\n   "))
        });
        table.add_row([
            format!("host{}", h + 1),
            node.host.ip4().to_string(),
            vtep_mac(node).unwrap_or_else(|| "none".to_owned()),
            node.subnets().map(|subnet| subnet.to_string()).collect::<Vec<_>>().join("\n"),
            containers.collect::<Vec<_>>().join("\n"),
        ]);
    }
    table
}

/// The best round trip of each pair: a row a sender, a column a receiver; of
/// many, a row a sending host.
pub fn pings(fabric: &Fabric, matrix: &Matrix) -> Table {
    let names: Vec<String> = fabric.containers().map(|(name, _)| name).collect();
    if names.len() <= MATRIX_WIDTH {
        return grid(&names, |i, j| matrix[i][j].map(|report| micros(report.rtt_min)));
    }
    let mut table = table();
    table.set_header(["pings from", "answered", "fastest", "slowest"]);
    for (h, rows) in matrix.chunks(matrix.len() / fabric.nodes.len()).enumerate() {
        let reports = || rows.iter().flatten().flatten();
        let count = |of: fn(&PingReport) -> u64| reports().map(of).sum::<u64>();
        let rtts = || reports().map(|report| report.rtt_min);
        table.add_row([
            format!("host{}", h + 1),
            format!("{} of {}", count(|report| report.received), count(|report| report.sent)),
            rtts().min().map(micros).unwrap_or_default(),
            rtts().max().map(micros).unwrap_or_default(),
        ]);
    }
    table
}

pub fn figures(figures: &Figures, healed: &[Healed]) -> Table {
    let Figures { fabric_gbits, underlay_gbits, latency, daemon_mib, whole_after } = figures;
    let mut table = table();
    table.add_row([
        "fabric whole".to_owned(),
        format!("{:.2} s after the daemons' start, containers and all", whole_after.as_secs_f64()),
    ]);
    table.add_row([
        "TCP, one stream".to_owned(),
        format!("{fabric_gbits:.1} Gbit/s ({underlay_gbits:.1} without the fabric)"),
    ]);
    table.add_row([
        "round trip".to_owned(),
        format!("{} on average, {} at best", micros(latency.rtt_avg), micros(latency.rtt_min)),
    ]);
    table.add_row(["a daemon's memory".to_owned(), format!("{daemon_mib:.1} MiB resident")]);
    for Healed { what, ping } in healed {
        table.add_row([what.clone(), heal::told(ping)]);
    }
    table
}

pub fn look_around(fabric: &Fabric) -> String {
    let node = &fabric.nodes[0];
    let container = node.containers[0].netns.name();
    let peer = fabric.nodes[1].containers[0].ips[0];
    let (host, program, socket) = (node.host.name(), fabric.program.display(), node.admin_socket());
    format!(
        "It stays up until you press Ctrl-C, which removes it all. From another terminal, as root:

  {program} status --admin-socket {}
  ip netns exec {host} ip route
  ip netns exec {container} ping {peer}
  tail -f {}
",
        socket.display(),
        node.daemon.log().display()
    )
}

pub fn what_next() -> String {
    "Try next:
  weft demo --keep               leave it up, look around, break it yourself
  weft demo --backend host-gw    plain routes instead of a tunnel
  weft demo --hosts 8 --ipv6     larger, and dual stack; --etcd for a real etcd
  weft daemon                    your own machine joins a fabric; then weft status
"
    .to_owned()
}

fn host_box(fabric: &Fabric, index: usize, node: &Node) -> Vec<String> {
    let mut lines = vec![format!("host{}", index + 1), format!("eth0 {}", node.host.ip4())];
    if fabric.backend == BackendChoice::Vxlan
        && let Some(subnet) = node.subnet()
    {
        lines.push(format!("VTEP {}", subnet.ip()));
    }
    if let Some(gateway) = node.gateway() {
        lines.push(format!("cni0 {gateway}"));
    }
    let last = node.containers.len().saturating_sub(1);
    for (c, container) in node.containers.iter().enumerate() {
        let branch = if c == last { '╰' } else { '├' };
        let ip = container.ips.first().map(ToString::to_string).unwrap_or_default();
        lines.push(format!(" {branch} {} {ip}", container_name(index, c)));
    }
    let edge = |left: char, mark: &str, right: char| {
        let middle = format!("{mark:^width$}", width = BOX_WIDTH - 2).replace(' ', "─");
        format!("{left}{middle}{right}")
    };
    let (top, bottom) = (edge('╭', "┴", '╮'), edge('╰', "┬", '╯'));
    let body = lines.into_iter().map(|line| format!("│ {line:<width$} │", width = BOX_WIDTH - 4));
    std::iter::once(top).chain(body).chain(std::iter::once(bottom)).collect()
}

/// The MAC of `flannel.1`, which peers send to; host-gw has none.
fn vtep_mac(node: &Node) -> Option<String> {
    let links = node.host.ip_json("link show dev flannel.1").ok()?;
    Some(format!("flannel.1\n{}", links[0]["address"].as_str()?))
}

fn grid(names: &[String], cell: impl Fn(usize, usize) -> Option<String>) -> Table {
    let mut table = table();
    table.set_header(std::iter::once("best ping").chain(names.iter().map(String::as_str)));
    for (i, name) in names.iter().enumerate() {
        let cells = (0..names.len()).map(|j| cell(i, j).unwrap_or_else(|| "·".to_owned()));
        table.add_row(std::iter::once(name.clone()).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY.with_rounded_corners());
    table
}

/// A mark above or below the middle of each box of a row.
fn joined(mark: &str, fill: char, boxes: usize) -> String {
    let one = format!("{mark:^BOX_WIDTH$}").replace(' ', &fill.to_string());
    vec![one; boxes].join(&format!("{fill}{fill}"))
}

/// From the middle of the first box of a row to the middle of the last.
fn bracket(line: char, boxes: usize) -> String {
    let whole: Vec<char> = joined("┴", line, boxes).chars().collect();
    let ends: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == '┴').collect();
    let (Some(&first), Some(&last)) = (ends.first(), ends.last()) else { return String::new() };
    let drawn = whole.iter().enumerate().map(|(i, &c)| match i {
        _ if i < first || i > last => ' ',
        // One box alone in its row: its tunnels lead to other rows.
        _ if first == last => '┊',
        _ if i == first => '╰',
        _ if i == last => '╯',
        _ => c,
    });
    drawn.collect::<String>().trim_end().to_owned()
}
