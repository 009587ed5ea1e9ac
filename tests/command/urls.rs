//! Sources of URLs, and what is ignored or refused in them.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use gateway_storage::{ErrorKind, File, FileOptions, Storage};

use crate::{Ended, Place, bare, copy_command, ended, is_root};

const SET: [&str; 4] = ["config", "set", "a", "1"];

impl Place {
    /// A file beside the store.
    fn put(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command with these variables and no other URL.
    fn with(&self, variables: &[(&str, &str)], line: &[&str]) -> Ended {
        let mut command = bare(line);
        command.current_dir(self.dir.path()).envs(variables.iter().copied());
        command.env("HOME", self.dir.path()).env_remove("XDG_CONFIG_HOME");
        ended(command.output().unwrap())
    }

    fn names(&self) -> Vec<String> {
        let name = |entry: Result<fs::DirEntry, _>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(self.dir.path()).unwrap().map(name).collect();
        names.retain(|name| name != ".local");
        names.sort();
        names
    }
}

#[test]
fn white_space_around_a_url_is_ignored() {
    let place = Place::new();
    let url = "\t file:./data?create=true\r\n\n";
    place.put("url", url, 0o600);
    for (variables, line) in [
        (&[("STORAGE_URL", url)][..], &SET[..]),
        (&[("OURS", url)], &["--url", "env:OURS", "config", "set", "a", "1"]),
        (&[("STORAGE_URL", " env:OURS\n"), ("OURS", url)], &SET),
        (&[], &["--url", url, "config", "set", "a", "1"]),
        (&[], &["--url", "@url", "config", "set", "a", "1"]),
        (&[("STORAGE_URL_FILE", "./url\n")], &SET),
        (&[], &["copy", url, "file:./data2 "]),
    ] {
        let ended = place.with(variables, line);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{variables:?} {line:?}");
    }
    assert_eq!(place.names(), ["data", "data2", "url"]);
    // The same store.
    let ended = place.with(&[], &["copy", url, "file:data\n"]);
    assert!(ended.code == Some(2) && ended.err.contains("same store"), "{}", ended.err);

    for url in ["file:./da\nta", "file:./data?create=true\r\ndeadline=1s", "redis://h:6379\u{85}/0"] {
        let ended = place.with(&[("STORAGE_URL", url)], &SET);
        assert_eq!(ended.code, Some(2), "{url:?}");
        assert!(ended.err.starts_with("error: the URL has a line feed or another control"), "{}", ended.err);
    }
    for empty in ["", " \n"] {
        let ended = place.with(&[("STORAGE_URL", empty)], &SET);
        assert!(ended.err.starts_with("error: no store is named"), "{}", ended.err);
        let ended = place.with(&[("OURS", empty)], &["--url", "env:OURS", "ping"]);
        assert!(
            ended.code == Some(2) && ended.err.contains("variable `OURS` is not set or empty"),
            "{}",
            ended.err
        );
        // An empty `--url`, as from an unset variable in a script, is not the default store.
        let ended = place.with(&[("STORAGE_URL", url)], &["--url", empty, "ping"]);
        assert!(ended.code == Some(2) && ended.err.contains("does not begin"), "{}", ended.err);
    }
    assert_eq!(place.names(), ["data", "data2", "url"]);
}

#[tokio::test]
async fn paths_for_a_shell_to_expand_are_refused() {
    let place = Place::new();
    let url = |url: &str| place.with(&[("STORAGE_URL", url)], &SET);
    for wrong in
        ["file:~/data", "file:~", "file:$HOME/data", "file:~me/data", "git:~/x", "git:${HOME}/x?branch=a"]
    {
        let ended = url(wrong);
        assert_eq!(ended.code, Some(2), "{wrong}: {}", ended.err);
        assert!(ended.err.contains("begins with `~` or `$`") && ended.err.contains("`./~`"), "{}", ended.err);
    }
    let stores = place.put("stores", "x = file:~/data\ny = git:~/data\n", 0o600);
    for name in ["x", "y"] {
        let ended = place.with(&[("STORAGE_CONFIG", &stores), ("STORAGE_URL", name)], &SET);
        assert!(ended.code == Some(2) && ended.err.contains("begins with `~`"), "{}", ended.err);
    }
    place.put("a.json", "{}", 0o600);
    for (variables, line) in [
        (&[][..], &["--url", "memory:", "credential", "set", "a", "@~/a.json"][..]),
        (&[], &["--url", "memory:", "plan", "apply", "$HOME/a.json", "--key", "k"]),
        (&[], &["--url", "@~/a.json", "ping"]),
        (&[("STORAGE_URL_FILE", "~/a.json")], &["ping"]),
        (&[("STORAGE_CONFIG", "~/stores")], &["--url", "x", "ping"]),
        (&[("STORAGE_CONFIG", "$HOME/stores")], &["ping"]),
    ] {
        let ended = place.with(variables, line);
        assert_eq!(ended.code, Some(2), "{line:?}: {}", ended.err);
        assert!(ended.err.contains("was not expanded by a shell\n  hint: "), "{line:?}: {}", ended.err);
    }
    for source in ["file:~/left", "file:$HOME"] {
        assert_eq!(place.with(&[], &["adopt", source, "memory:"]).code, Some(2));
    }
    let error = Storage::<File>::open(FileOptions::new("~/data")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    assert!(!Path::new("~").exists(), "where the tests run");
    assert_eq!(place.names(), ["a.json", "stores"]);

    for right in ["file:./~", "file:./$HOME", "file:a~"] {
        assert_eq!(url(right).code, Some(0), "{right}");
    }
    assert_eq!(place.names(), ["$HOME", "a.json", "a~", "stores", "~"]);
}

#[test]
fn a_file_holds_one_url() {
    let place = Place::new();
    for (text, says) in [
        ("", "the file `url` is empty"),
        ("\u{feff}\n", "the file `url` is empty"),
        ("file:./a\nfile:./secret\n", "the file `url` has more than one line"),
        ("default = file:./secret\n", "the URL does not begin with its backend"),
        ("@url", "the URL does not begin with its backend"),
    ] {
        place.put("url", text, 0o600);
        let ended = place.with(&[], &["--url", "@url", "ping"]);
        assert_eq!(ended.code, Some(2));
        assert!(ended.err.contains(says) && !ended.err.contains("secret"), "{text:?}: {}", ended.err);
    }
    let ended = place.with(&[], &["--url", "@nowhere", "ping"]);
    assert!(ended.code == Some(2) && ended.err.contains("the file `nowhere` can't be read"), "{}", ended.err);
    place.put("url", "file:./data", 0o600);
    let both = place.with(&[("STORAGE_URL", "memory:"), ("STORAGE_URL_FILE", "url")], &["ping"]);
    assert!(both.code == Some(2) && both.err.contains("are both set"), "{}", both.err);
    // The command line has priority over the environment.
    let line = ["--url", "@url", "config", "set", "a", "1"];
    assert_eq!(place.with(&[("STORAGE_URL", "memory:"), ("STORAGE_URL_FILE", "no")], &line).code, Some(0));
    assert_eq!(place.with(&[], &["copy", "@url", "file:./other"]).code, Some(0));
    assert_eq!(place.with(&[("STORAGE_URL", "@url")], &["config", "get", "a"]).out, "1\n");
}

#[test]
fn a_file_that_others_can_read_is_refused_if_its_mode_can_be_changed() {
    let place = Place::new();
    let stores = place.put("stores", "default = memory:\n", 0o600);
    let url = place.put("url", "memory:\n", 0o600);
    for mode in [0o640, 0o604, 0o620, 0o602] {
        for (name, value) in [("STORAGE_CONFIG", &stores), ("STORAGE_URL_FILE", &url)] {
            fs::set_permissions(value, fs::Permissions::from_mode(mode)).unwrap();
            let ended = place.with(&[(name, value)], &["ping"]);
            let hint = format!("  hint: chmod 600 '{value}'\n");
            assert!(ended.code == Some(2) && ended.err.ends_with(&hint), "{mode:o}: {}", ended.err);
            let found = fs::metadata(value).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "the mode is unchanged");
        }
    }
}

/// A file of this user that all users can read and whose mode can't be changed: the name of a process.
#[cfg(target_os = "linux")]
#[test]
fn a_file_whose_mode_can_not_be_changed_is_read() {
    let place = Place::new();
    for (holds, variable, line) in [
        ("memory:", "STORAGE_URL_FILE", &["ping"][..]),
        ("x=memory:", "STORAGE_CONFIG", &["--url", "x", "ping"]),
    ] {
        let program = place.dir.path().join(holds);
        symlink("/bin/sleep", &program).unwrap();
        let mut child = Command::new(&program).arg("60").stdin(Stdio::null()).spawn().unwrap();
        let file = format!("/proc/{}/comm", child.id());
        let ended = place.with(&[(variable, &file)], line);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.code == Some(0) && ended.out.starts_with("memory  ok"), "{} {}", ended.out, ended.err);
        assert!(ended.err.starts_with("warning: the file ") && ended.err.contains(&file), "{}", ended.err);
        assert!(ended.err.ends_with("may contain passwords, and other users can read it\n"), "{}", ended.err);
    }
}

/// Like a secret mounted by Docker or Kubernetes, which belongs to root. Only root can create one.
#[test]
fn a_secret_that_belongs_to_root_is_read() {
    let place = Place::new();
    if !is_root() {
        return;
    }
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.dir.path().join("storage");
    copy_command(&program);
    let run = |variable: &str, file: &str| {
        let mut command = Command::new(&program);
        command.arg("ping").env_clear().env(variable, file).uid(65534).gid(65534);
        ended(command.output().unwrap())
    };
    for (variable, text) in [("STORAGE_URL_FILE", "memory:\n"), ("STORAGE_CONFIG", "default = memory:\n")] {
        let file = place.put(variable, text, 0o440);
        chown(&file, None, Some(65534)).unwrap();
        let by_group = run(variable, &file);
        assert_eq!((by_group.code, by_group.err.as_str()), (Some(0), ""));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        let by_all = run(variable, &file);
        assert!(by_all.code == Some(0) && by_all.err.starts_with("warning: the file "), "{}", by_all.err);
        // A file that this user owns is refused.
        chown(&file, Some(65534), None).unwrap();
        let own = run(variable, &file);
        assert!(own.code == Some(2) && own.err.contains("chmod 600"), "{}", own.err);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(run(variable, &file).code, Some(0));
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    const MARK: &str = "\u{feff}";
    let place = Place::new();
    place.put("url", format!("{MARK}file:./data\r\n"), 0o600);
    let stores = place.put("stores", format!("{MARK}x = file:./data\r\n"), 0o600);
    let value = format!("{MARK}{{\"access_token\":\"x\"}}\r\n");
    place.put("value.json", &value, 0o600);
    place.put("plan.json", format!("{MARK}[{{\"set\":\"b\",\"value\":1}}]"), 0o600);
    let run = |line: &[&str]| {
        let ended = place.with(&[("STORAGE_CONFIG", &stores), ("STORAGE_URL", "@url")], line);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line:?}");
        ended.out
    };
    run(&["credential", "set", "a", "@value.json"]);
    run(&["credential", "set", "b", &value]);
    run(&["plan", "apply", "plan.json", "--key", "k"]);
    run(&["--url", "x", "config", "set", "c", &format!("{MARK}2")]);
    assert_eq!(run(&["config", "list", "--reveal"]), "b\t1\nc\t2\n");
    assert_eq!(run(&["credential", "get", "a", "--reveal"]), run(&["credential", "get", "b", "--reveal"]));
    let fed = place.fed(&value, &["credential", "set", "a", "-"]);
    assert_eq!((fed.code, fed.err.as_str()), (Some(0), ""));
    // Within a value it is kept.
    run(&["config", "set", "d", &format!("\"{MARK}x\"")]);
    assert_eq!(run(&["config", "get", "d"]), format!("\"{MARK}x\"\n"));

    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    place.put("wide.json", wide, 0o600);
    let err = place.fails(2, &["credential", "set", "a", "@wide.json"]);
    assert!(err.starts_with("error: the value is UTF-16") && err.ends_with("save it as UTF-8\n"), "{err}");
}
