//! The whole command line, as shells complete it.

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use super::{Command, Global};
use crate::{agent, controller};

/// Pod networking and service load balancing for Kubernetes nodes, in eBPF.
#[derive(Parser, Clone, Debug)]
#[command(name = "portolan", version, propagate_version = true)]
pub struct Arguments {
    /// Where the agent and its tables are.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Root,
}

/// What the binary can do.
#[derive(Subcommand, Clone, Debug)]
pub enum Root {
    /// Run the agent of this node
    Agent(Box<agent::Options>),
    /// Run the controller, which gives services of type LoadBalancer their addresses
    Controller(Box<controller::Options>),
    /// Remove everything that the agent made on this node: programs, tables, interfaces, routes
    Uninstall(Box<agent::UninstallOptions>),
    /// Look at something
    #[command(flatten)]
    View(Command),
}

/// The completion script of a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "portolan", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Arguments::command().debug_assert();
    }

    fn leaves(command: &clap::Command) -> Vec<clap::Command> {
        if command.has_subcommands() {
            command.get_subcommands().flat_map(leaves).collect()
        } else {
            vec![command.clone()]
        }
    }

    #[test]
    fn every_view_comes_as_table_json_or_yaml() {
        let commands: [&[&str]; 14] = [
            &["status"],
            &["service", "list"],
            &["service", "show", "web"],
            &["pod", "list"],
            &["flow", "list"],
            &["drop", "list"],
            &["lb", "list"],
            &["lb", "list", "--source", "dir:/etc/portolan/objects"],
            &["bgp", "peers"],
            &["bgp", "routes"],
            &["audit"],
            &["doctor"],
            &["explain", "10.0.0.1", "10.96.0.10:80"],
            &["trace"],
        ];
        for command in commands {
            for form in ["table", "json", "yaml"] {
                for option in [["-o", form], ["--output", form]] {
                    let words = ["portolan"].iter().chain(command).chain(&option);
                    assert!(Arguments::try_parse_from(words).is_ok(), "{command:?} {option:?}");
                }
            }
        }
        // One of them twice, and not agent, controller, uninstall, crds and completion.
        assert_eq!(leaves(&Arguments::command()).len(), commands.len() - 1 + 5);
    }

    #[test]
    fn every_view_has_an_example_in_its_help() {
        for leaf in leaves(&Arguments::command()) {
            let help = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
            let has =
                ["Example:\n  portolan ", "Examples:\n  portolan "].iter().any(|begin| help.contains(begin));
            assert!(has, "{} has no example", leaf.get_name());
        }
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_nouns() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let script = script(shell);
            for word in ["agent", "service", "flow", "completion", "limit"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn socket_and_pins_may_stand_behind_the_command() {
        let parsed =
            Arguments::try_parse_from(["portolan", "drop", "list", "--pins", "/p", "--socket", "/s"])
                .unwrap();
        assert_eq!(parsed.global.pins, std::path::Path::new("/p"));
        assert_eq!(parsed.global.socket, std::path::Path::new("/s"));
    }

    #[test]
    fn a_misuse_exits_with_2() {
        use clap::error::ErrorKind::{ArgumentConflict, InvalidValue, ValueValidation};
        let misuses: [(&[&str], _); 3] = [
            (&["portolan", "flow", "list", "--address", "nonsense"], ValueValidation),
            (&["portolan", "flow", "list", "--address", "10.0.0.1", "--service", "web"], ArgumentConflict),
            (&["portolan", "service", "list", "-o", "xml"], InvalidValue),
        ];
        for (misuse, kind) in misuses {
            let error = Arguments::try_parse_from(misuse).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{misuse:?}");
        }
    }
}
