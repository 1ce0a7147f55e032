//! Manual pages and completions of a program, made from its command line's own description.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// The word that asks for them: `PROGRAM --generate-pages DIR`. `make install` uses it; the help does not name it.
pub const OPTION: &str = "--generate-pages";

/// Where each shell looks for completions below `share/`.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// Writes one manual page for the program and each of its subcommands, and completions for bash, zsh and fish, below
/// `share` as the Filesystem Hierarchy Standard lays out `/usr/share`.
///
/// # Errors
///
/// Where a file or directory cannot be made.
pub fn write(command: &Command, share: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let manual = share.join("man/man1");
    fs::create_dir_all(&manual)?;
    clap_mangen::generate_to(command.clone(), &manual)?;
    for (shell, below) in SHELLS {
        let dir = share.join(below);
        fs::create_dir_all(&dir)?;
        clap_complete::generate_to(shell, &mut command.clone(), name.clone(), &dir)?;
        if shell == Shell::Bash {
            // bash-completion loads a file of exactly the program's name.
            fs::rename(dir.join(format!("{name}.bash")), dir.join(&name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subcommand_has_a_page_and_each_shell_its_completions() {
        let share = tempfile::tempdir().unwrap();
        let command = Command::new("tool")
            .about("Does one thing.")
            .subcommand(Command::new("run").about("Runs it."))
            .subcommand(Command::new("internal").hide(true));
        write(&command, share.path()).unwrap();
        let read = |path: &str| fs::read_to_string(share.path().join(path)).unwrap();
        assert!(read("man/man1/tool.1").contains("Does one thing."));
        assert!(read("man/man1/tool-run.1").contains("Runs it."));
        assert!(!share.path().join("man/man1/tool-internal.1").exists());
        for path in
            ["bash-completion/completions/tool", "zsh/site-functions/_tool", "fish/vendor_completions.d/tool.fish"]
        {
            assert!(read(path).contains("run"), "{path}");
        }
    }
}
