//! What is said while it happens: a spinner on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub struct Voice {
    terminal: bool,
}

impl Voice {
    pub fn new() -> Voice {
        Voice { terminal: stdout().is_terminal() }
    }

    /// Does one step. `work` returns its result and the line that tells it; it
    /// may set the spinner's message on the way.
    pub fn step<T>(
        &self,
        doing: &str,
        work: impl FnOnce(&ProgressBar) -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let spinner = self.spinner(doing);
        let worked = work(&spinner);
        spinner.finish_and_clear();
        match worked {
            Ok((value, line)) => {
                println!("{} {line:<64} {:>4.1} s", self.mark("✓", 32), start.elapsed().as_secs_f64());
                Ok(value)
            }
            Err(error) => {
                println!("{} {doing}", self.mark("✗", 31));
                Err(error)
            }
        }
    }

    fn spinner(&self, doing: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        spinner.set_style(ProgressStyle::default_spinner().tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
        spinner.set_message(doing.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(80));
        spinner
    }

    fn mark(&self, mark: &str, colour: u8) -> String {
        if self.terminal { format!(" \x1b[{colour}m{mark}\x1b[0m") } else { format!(" {mark}") }
    }
}
