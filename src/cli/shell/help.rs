//! What `help` prints: the list of commands, or one command with its fields, from the protocol's own table.

use super::words::{dashed, form, is_positional, usage};
use strand_wire::commands::{COMMANDS, Class, CommandSpec, find, nearest};

/// Groups of commands and their titles, in the order of printing.
const GROUPS: [(&str, &[Class]); 4] = [
    ("Keys", &[Class::Read, Class::Write]),
    ("Many keys, search and indexes", &[Class::ScatterRead, Class::BarrierWrite]),
    ("Running it", &[Class::Admin]),
    ("Connection", &[Class::Connection]),
];

/// Help on everything, or on one command.
pub(super) fn text(topic: Option<&str>, coloured: bool) -> Result<String, String> {
    match topic {
        None => Ok(overview(coloured)),
        Some(name) => match find(name) {
            Some(spec) => Ok(one(spec, coloured)),
            None => Err(match nearest(name, COMMANDS.iter().map(|spec| spec.name)) {
                Some(near) => format!("there is no command {name}; did you mean {near}?"),
                None => format!("there is no command {name}; `help` lists them"),
            }),
        },
    }
}

fn bold(text: &str, coloured: bool) -> String {
    if coloured { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

fn overview(coloured: bool) -> String {
    let mut out = String::new();
    for (title, classes) in GROUPS {
        out += &format!("{}\n", bold(title, coloured));
        for spec in COMMANDS.iter().filter(|spec| classes.contains(&spec.class)) {
            out += &format!("  {:<16} {}\n", spec.name, spec.summary);
        }
    }
    out + "\n`help COMMAND` shows what a command takes. A line that begins with { is sent as it is. `exit` or Ctrl-D ends."
}

fn one(spec: &CommandSpec, coloured: bool) -> String {
    let mut out = format!("{}: {}\n  {}", bold(spec.name, coloured), spec.summary, usage(spec));
    for field in spec.fields {
        let typed = if is_positional(spec.name, field.name) {
            field.name.to_owned()
        } else {
            format!("--{}", dashed(field.name))
        };
        let needed = if field.required { ", required" } else { "" };
        out += &format!("\n    {typed:<16} {:<22} {}{needed}", form(field.kind), field.summary);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_and_stands_in_the_overview() {
        let all = text(None, false).unwrap();
        for spec in COMMANDS {
            assert!(all.contains(&format!("  {} ", spec.name)), "{}", spec.name);
            let help = text(Some(&spec.name.to_lowercase()), false).unwrap();
            assert!(spec.fields.iter().all(|field| help.contains(field.summary)), "{help}");
        }
        assert!(text(Some("SERCH"), false).unwrap_err().contains("SEARCH"));
    }
}
