//! `strand cli`: one command from the command line, lines from a pipe, or a shell with history and completion.
//!
//! This file chooses among the three. Words become commands in `words.rs`, replies become text in `print.rs` and `json.rs`,
//! and `prompt.rs` is the shell. Everything goes through the client's public API. Never reads the server's files.

mod help;
mod json;
mod print;
mod prompt;
mod session;
mod words;

use crate::fatal::ExitCode;
use clap::Args;
use print::Printer;
use session::Session;
use std::io::{self, BufRead, BufReader, IsTerminal};

const EXAMPLES: &str = "\
Examples:
  strand cli                                  a shell with history, completion and `help`
  strand cli GET foo                          one command
  strand cli SET foo '{\"a\":1}' --ttl-ms 5000  a value that is not JSON is taken as text
  strand cli SEARCH quick fox top_k=5         fields as --top-k 5 or top_k=5
  strand cli '{\"command\":\"PING\"}'             a request as it goes over the wire
  strand cli < commands.txt                   one command a line; requests in JSON too
  strand cli help SEARCH                      what a command takes

Exit codes: 0 done, 1 a command failed or no server was reached, 2 a command cannot be read.";

/// `strand cli`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShellArgs {
    /// Host to connect to.
    #[arg(long, default_value = "127.0.0.1", conflicts_with = "address")]
    host: String,
    /// Port to connect to.
    #[arg(short, long, default_value_t = 8000, conflicts_with = "address")]
    port: u16,
    /// Address to connect to; may be given several times for the nodes of a cluster.
    #[arg(short, long, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// Token to present, for servers that ask for one.
    #[arg(long, env = "STRAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print replies as they came, one line each.
    #[arg(long)]
    json: bool,
    /// The command and what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How one line or command ended; the worst of them is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Well,
    Failed,
    Unreadable,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Well => Self::Done,
            Ended::Failed => Self::Failed,
            Ended::Unreadable => Self::Usage,
        }
    }
}

/// Runs `strand cli`.
pub fn run(arguments: &ShellArgs) -> ExitCode {
    let printer = Printer::new(arguments.json);
    let mut session = Session::new(addresses(arguments), arguments.token.clone(), printer);
    let ended = if !arguments.command.is_empty() {
        session.words(&arguments.command)
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        prompt::run(&mut session)
    } else {
        piped(&mut session)
    };
    ended.into()
}

fn addresses(arguments: &ShellArgs) -> Vec<String> {
    if !arguments.address.is_empty() {
        return arguments.address.clone();
    }
    let bare = arguments.host.trim_matches(['[', ']']);
    vec![if bare.contains(':') {
        format!("[{bare}]:{}", arguments.port)
    } else {
        format!("{bare}:{}", arguments.port)
    }]
}

/// Lines sent together when they are there already.
const LINES_TOGETHER: usize = 256;

/// Runs every line of stdin. What has arrived together travels together; what comes line by line is answered line by line.
fn piped(session: &mut Session) -> Ended {
    let mut input = BufReader::with_capacity(256 * 1024, io::stdin().lock());
    let mut worst = Ended::Well;
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let ended = match input.read_line(&mut line) {
            Ok(0) => true,
            Ok(_) => {
                lines.push(line);
                false
            }
            Err(error) => {
                session.printer.failure(&format!("cannot read stdin: {error}"), "");
                worst = Ended::Failed;
                true
            }
        };
        if ended || lines.len() == LINES_TOGETHER || !input.buffer().contains(&b'\n') {
            worst = worst.max(session.lines(&std::mem::take(&mut lines)));
        }
        if ended || session.is_over() {
            return worst;
        }
    }
}
