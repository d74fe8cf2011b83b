//! Where options come from: the command line, then a variable, then the option
//! file, then the default.
//!
//! The table of options is clap's own. What a variable or the file gives is
//! appended to the command line before it is parsed, so that every value takes
//! one way in. Options that declare an `env` take part: `FLANNELD_X` there means
//! that `WEFT_X` is read too, and first. An empty variable counts as unset, and
//! one of flannel's that does not parse is passed over with a message, as
//! flannel does.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use thiserror::Error;

use super::option_file::{self, Entry, FileError};
use crate::daemon::config::OPTION_FILE;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Variable(String),
    File(PathBuf, usize),
    Default,
}

/// A command line with all that variables and the file add to it.
#[derive(Debug)]
pub struct Resolved {
    pub matches: ArgMatches,
    /// The subcommand that was asked for.
    pub command: Command,
    /// By the argument's id; what is not in it has its default.
    sources: BTreeMap<String, Source>,
    /// Variables that were passed over: for the log.
    pub notes: Vec<String>,
}

#[derive(Debug, Error)]
pub enum SourceError {
    /// Help and version too.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error("{name}: {reason}")]
    Variable { name: String, reason: String },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Resolved {
    pub fn source(&self, id: &str) -> Source {
        self.sources.get(id).cloned().unwrap_or(Source::Default)
    }

    /// What the subcommand was given.
    pub fn leaf(&self) -> &ArgMatches {
        leaf_matches(&self.matches)
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Variable(name) => f.write_str(name),
            Source::File(path, line) => write!(f, "{} line {line}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// Parses `args` with what `variable` and the option file add.
///
/// # Errors
/// What clap refuses on the command line, a `WEFT_` variable or a value of the
/// file that does not parse, and a file that is named and not there.
pub fn resolve(
    root: &Command,
    args: &[OsString],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Resolved, SourceError> {
    let mut resolver = Resolver::new(root, args)?;
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    for owner in ["WEFT_", "FLANNELD_"] {
        resolver.offer(resolver.variables(owner, &set))?;
    }
    if let Some(found) = resolver.file(root, &set)? {
        resolver.offer(found)?;
    }
    let matches = resolver.parse(&resolver.args)?;
    let Resolver { command, sources, notes, .. } = resolver;
    Ok(Resolved { matches, command, sources, notes })
}

/// A value that is taken unless something before it settled the option.
struct Offer {
    arg: Arg,
    values: Vec<String>,
    source: Source,
}

struct Resolver {
    /// The whole command line's grammar, which reads no variables itself.
    parser: Command,
    /// The subcommand's part of it, with the variables' names.
    command: Command,
    /// The program's name and the subcommand's.
    head: Vec<OsString>,
    args: Vec<OsString>,
    sources: BTreeMap<String, Source>,
    notes: Vec<String>,
}

impl Resolver {
    fn new(root: &Command, args: &[OsString]) -> Result<Resolver, clap::Error> {
        let (depth, command) = leaf(root, args);
        let mut resolver = Resolver {
            parser: without_variables(root.clone()),
            command: command.clone(),
            head: args.iter().take(depth).cloned().collect(),
            args: args.iter().skip(depth).cloned().collect(),
            sources: BTreeMap::new(),
            notes: Vec::new(),
        };
        resolver.drop_blank();
        let matches = resolver.parse(&resolver.args)?;
        let given = |arg: &&Arg| {
            leaf_matches(&matches).value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
        };
        let given = resolver.command.get_arguments().filter(given).map(|arg| arg.get_id().to_string());
        resolver.sources.extend(given.map(|id| (id, Source::Flag)));
        Ok(resolver)
    }

    /// `-iface=` and `-iface ''` are what a template leaves whose variable is
    /// empty. To flannel an empty text is none.
    fn drop_blank(&mut self) {
        let mut args = std::mem::take(&mut self.args).into_iter().peekable();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            let (name, value) = match text.strip_prefix("--").map(|flag| flag.split_once('=')) {
                Some(Some((name, value))) => (name, Some(value)),
                Some(None) => (&text[2..], None),
                None => ("", None),
            };
            let known = self.command.get_arguments().find(|arg| arg.get_long() == Some(name));
            let Some(id) = known.filter(|arg| may_be_blank(arg)).map(|arg| arg.get_id().to_string()) else {
                self.args.push(arg);
                continue;
            };
            let spaced = value.is_none() && args.next_if(|next| next.is_empty()).is_some();
            if spaced || value == Some("") {
                self.sources.insert(id, Source::Flag);
            } else {
                self.args.push(arg);
            }
        }
    }

    fn variables(&self, owner: &str, variable: &impl Fn(&str) -> Option<String>) -> Vec<Offer> {
        let offer = |arg: &Arg| {
            let declared = arg.get_env()?.to_str()?;
            let (declared_by, name) = declared.split_once('_')?;
            // Ours stands beside each of flannel's, not the other way round.
            let name = match owner {
                "WEFT_" => format!("WEFT_{name}"),
                _ if owner.trim_end_matches('_') == declared_by => declared.to_owned(),
                _ => return None,
            };
            Some(Offer { arg: arg.clone(), values: vec![variable(&name)?], source: Source::Variable(name) })
        };
        self.command.get_arguments().filter_map(offer).collect()
    }

    /// `None` where there is no file and none was named.
    fn file(
        &self,
        root: &Command,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Vec<Offer>>, SourceError> {
        let options = || self.command.get_arguments().filter(|arg| arg.get_env().is_some());
        if options().next().is_none() {
            return Ok(None);
        }
        let named = self.config_flag()?.or_else(|| variable("WEFT_CONFIG")).map(PathBuf::from);
        let path = named.clone().unwrap_or_else(|| OPTION_FILE.into());
        let entries = match option_file::read(&path, &file_options(root)) {
            Err(FileError::Read { cause, .. }) if cause.kind() == ErrorKind::NotFound && named.is_none() => {
                return Ok(None);
            }
            entries => entries?,
        };
        let offer = |entry: Entry| {
            let arg = options().find(|arg| arg.get_long() == Some(&entry.name))?.clone();
            Some(Offer { arg, values: entry.values, source: Source::File(path.clone(), entry.line) })
        };
        Ok(Some(entries.into_iter().filter_map(offer).collect()))
    }

    /// What `--config` says, where the subcommand has it.
    fn config_flag(&self) -> Result<Option<String>, clap::Error> {
        if self.sources.get("config") != Some(&Source::Flag) {
            return Ok(None);
        }
        let matches = self.parse(&self.args)?;
        let path = leaf_matches(&matches).get_one::<PathBuf>("config");
        Ok(path.map(|path| path.display().to_string()))
    }

    fn offer(&mut self, offers: Vec<Offer>) -> Result<(), SourceError> {
        let before: BTreeSet<String> = self.sources.keys().cloned().collect();
        for Offer { arg, values, source } in offers {
            if self.is_settled(&arg, &before) {
                continue;
            }
            match (self.check(&arg, &values), source) {
                (Ok(args), source) => {
                    self.args.extend(args);
                    self.sources.insert(arg.get_id().to_string(), source);
                }
                (Err(reason), Source::File(path, line)) => {
                    let reason = format!("{}: {reason}", arg.get_long().unwrap_or_default());
                    return Err(FileError::Line { path, line, reason }.into());
                }
                (Err(reason), Source::Variable(name)) if name.starts_with("WEFT_") => {
                    return Err(SourceError::Variable { name, reason });
                }
                (Err(reason), source) => self.notes.push(format!("{source}: {reason}: passed over")),
            }
        }
        Ok(())
    }

    /// `before` has settled it, or an option that does not go with it.
    fn is_settled(&self, arg: &Arg, before: &BTreeSet<String>) -> bool {
        let refuses = |arg: &Arg, id: &str| {
            self.command.get_arg_conflicts_with(arg).iter().any(|other| other.get_id() == id)
        };
        let id = arg.get_id().as_str();
        before.contains(id)
            || before.iter().any(|other| refuses(arg, other))
            || self
                .command
                .get_arguments()
                .any(|other| before.contains(other.get_id().as_str()) && refuses(other, id))
    }

    /// The values as arguments, if they are right by themselves.
    fn check(&self, arg: &Arg, values: &[String]) -> Result<Vec<OsString>, String> {
        let name = arg.get_long().unwrap_or_default();
        if values.len() > 1 && !matches!(arg.get_action(), ArgAction::Append) {
            return Err("takes one value, not a list".to_owned());
        }
        let args: Vec<_> = values.iter().map(|value| OsString::from(format!("--{name}={value}"))).collect();
        match self.parse(&args) {
            Ok(_) => Ok(args),
            Err(error) => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                let reason = first.trim_start_matches("error: ").to_owned();
                let accepted = text.lines().map(str::trim).find(|line| line.starts_with("[possible"));
                Err(accepted.map_or(reason.clone(), |accepted| format!("{reason} {accepted}")))
            }
        }
    }

    fn parse(&self, args: &[OsString]) -> Result<ArgMatches, clap::Error> {
        self.parser.clone().try_get_matches_from(self.head.iter().chain(args))
    }
}

/// The options that may stand in the file: the daemon's.
fn file_options(root: &Command) -> Vec<&str> {
    let daemon = root.find_subcommand("daemon").unwrap_or(root);
    let options = daemon.get_arguments().filter(|arg| arg.get_env().is_some() && arg.get_id() != "config");
    options.filter_map(Arg::get_long).collect()
}

/// The subcommand that `args` name, and how many of them it takes to name it.
fn leaf<'a>(root: &'a Command, args: &[OsString]) -> (usize, &'a Command) {
    let (mut depth, mut command) = (1, root);
    while let Some(deeper) = args.get(depth).and_then(|name| command.find_subcommand(name)) {
        (depth, command) = (depth + 1, deeper);
    }
    (depth, command)
}

fn leaf_matches(mut matches: &ArgMatches) -> &ArgMatches {
    while let Some((_, deeper)) = matches.subcommand() {
        matches = deeper;
    }
    matches
}

/// Also, of an option given twice the last value holds, as with Go's flags.
fn without_variables(command: Command) -> Command {
    let plain = |arg: Arg| {
        let id = arg.get_id().clone();
        let once = matches!(arg.get_action(), ArgAction::Set);
        let arg = arg.env(Resettable::Reset);
        if once { arg.overrides_with(id) } else { arg }
    };
    command.mut_args(plain).mut_subcommands(without_variables)
}

fn may_be_blank(arg: &Arg) -> bool {
    arg.get_env().is_some() && arg.get_default_values().is_empty() && !arg.is_require_equals_set()
}
