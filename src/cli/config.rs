//! `weft config show`: what is in force, and where each value came from.

use clap::{Arg, Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::sources::{Resolved, Source};
use crate::daemon::config::DaemonArgs;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show each option of the daemon with its value and where that came from
    ///
    /// Takes the daemon's options, so that a command line can be tried. Secrets
    /// are left out.
    #[command(disable_version_flag = true)]
    Show(Box<ShowArgs>),
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

pub fn show(args: &ShowArgs, resolved: &Resolved) -> anyhow::Result<()> {
    let options: Vec<_> = options(resolved, &args.daemon).collect();
    if args.json {
        let object: serde_json::Map<_, _> = options.into_iter().map(Shown::json).collect();
        println!("{}", serde_json::to_string_pretty(&object)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["option", "value", "from"]);
    for option in options {
        table.add_row([option.name, option.values.join(", "), option.source.to_string()]);
    }
    println!("{table}");
    Ok(())
}

struct Shown {
    name: String,
    values: Vec<String>,
    many: bool,
    source: Source,
}

impl Shown {
    fn json(self) -> (String, Value) {
        let mut values = self.values.into_iter().map(Value::from);
        let value = if self.many { values.collect() } else { values.next().unwrap_or_default() };
        let source = match self.source {
            Source::Flag => json!({"kind": "flag"}),
            Source::Variable(name) => json!({"kind": "variable", "name": name}),
            Source::File(path, line) => json!({"kind": "file", "path": path, "line": line}),
            Source::Default => json!({"kind": "default"}),
        };
        (self.name, json!({"value": value, "source": source}))
    }
}

/// The options that can be set, and of those without effect the ones that are.
fn options(resolved: &Resolved, args: &DaemonArgs) -> impl Iterator<Item = Shown> {
    resolved.command.get_arguments().filter_map(|arg| {
        let name = arg.get_long()?.to_owned();
        let source = resolved.source(arg.get_id().as_str());
        if arg.get_env().is_none() || (arg.is_hide_set() && source == Source::Default) {
            return None;
        }
        let many = matches!(arg.get_action(), clap::ArgAction::Append);
        let mut values = values(resolved, arg);
        if values.is_empty() {
            values.extend(args.derived(&name));
        }
        Some(Shown { name, values, many, source })
    })
}

fn values(resolved: &Resolved, arg: &Arg) -> Vec<String> {
    let raw = resolved.leaf().get_raw(arg.get_id().as_str()).into_iter().flatten();
    let raw = raw.map(|value| value.to_string_lossy());
    if arg.is_hide_env_values_set() {
        return raw.map(|_| "(not shown)".to_owned()).collect();
    }
    raw.map(|value| without_login(&value)).collect()
}

/// A URL keeps no password to itself: `http://user:word@host` is shown as
/// `http://(not shown)@host`.
fn without_login(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://(not shown)@{host}"),
        None => value.to_owned(),
    }
}
