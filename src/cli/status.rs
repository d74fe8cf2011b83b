//! `weft status`: what this node holds, whom it is joined to, and whether the
//! kernel agrees.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets};

use crate::daemon::admin;
use crate::daemon::status::{PeerStatus, Status};

/// Show this node's lease, its peers and the store
///
/// With the state of each peer in the kernel, looked up afresh. Exits with 1
/// where something is not as it should be.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Socket of the daemon.
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = admin::SOCKET, value_name = "PATH")]
    admin_socket: PathBuf,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let status = admin::ask(&args.admin_socket).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status));
    }
    if let Some(trouble) = status.trouble() {
        anyhow::bail!("{trouble}");
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let mut facts = table();
    let subnets = status.lease.subnets.join(", ");
    facts.add_row(["subnet".to_owned(), format!("{subnets} ({})", status.lease.state)]);
    facts.add_row(["network".to_owned(), status.networks.join(", ")]);
    facts.add_row(["backend".to_owned(), format!("{}, MTU {}", status.backend, status.mtu)]);
    facts.add_row([
        "this node".to_owned(),
        format!("{} on {}", status.node.public_ips.join(", "), status.node.uplink),
    ]);
    let store = if status.store.connected { "connected" } else { "AWAY" };
    facts.add_row(["store".to_owned(), format!("{} ({store})", status.store.name)]);
    let kernel = &status.kernel;
    let sync = if kernel.synced { "in sync" } else { "NOT IN SYNC" };
    facts.add_row([
        "kernel".to_owned(),
        format!("{sync}; {} changes made, {} of them repairs", kernel.changes, kernel.repairs),
    ]);
    let mut out = format!("{facts}\n\n{}\n", peers(&status.peers));
    for line in status.store.bad_records.iter().chain(&kernel.failures).chain(&status.traffic) {
        out.push_str(&format!("! {line}\n"));
    }
    out
}

fn peers(peers: &[PeerStatus]) -> Table {
    let mut out = table();
    out.set_header(["peer", "reached at", "backend", "in the kernel"]);
    for peer in peers {
        let state = match (&peer.rejected, peer.missing.as_slice()) {
            (Some(reason), _) => format!("left out: {reason}"),
            (None, []) => "ok".to_owned(),
            (None, missing) => format!("missing {}", missing.join(", ")),
        };
        out.add_row([peer.subnets.join(", "), peer.public_ips.join(", "), peer.backend.clone(), state]);
    }
    out
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}
