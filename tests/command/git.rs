//! A Git store: history and remote.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;

use crate::{Ended, Place, bare, ended, is_root};

/// Runs a command on a Git store with a remote beside it.
fn run(place: &Place, line: &[&str]) -> Ended {
    let url = format!("git:./store?remote={}", place.dir.path().join("remote.git").display());
    ended(bare(line).env("STORAGE_URL", url).current_dir(place.dir.path()).output().unwrap())
}

#[track_caller]
fn ok(place: &Place, line: &[&str]) -> String {
    let ended = run(place, line);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line:?}");
    ended.out
}

fn with_a_remote() -> Place {
    let place = Place::new();
    init(place.dir.path(), &["--bare", "remote.git"]);
    place
}

fn init(at: &Path, what: &[&str]) {
    let made =
        Command::new("git").args(["init", "--quiet", "-b", "main"]).args(what).current_dir(at).status();
    assert!(made.expect("git is installed").success());
}

#[test]
fn a_history_is_listed_shown_and_reverted() {
    let place = with_a_remote();
    for value in ["1", "2"] {
        ok(&place, &["config", "set", "retries", value]);
    }
    ok(&place, &["credential", "set", "alice", r#"{"token":"ya29"}"#]);
    let out = ok(&place, &["history", "config", "retries", "--output", "json"]);
    let commits: Value = serde_json::from_str(&out).unwrap();
    let [newest, first] = [0, 1].map(|n| commits[n]["id"].as_str().unwrap().to_owned());
    assert_eq!(commits.as_array().unwrap().len(), 2);
    let lines = ok(&place, &["history", "config", "retries", "--limit", "1"]);
    assert!(lines.starts_with(&newest) && lines.contains("  set  ") && lines.lines().count() == 1, "{lines}");

    assert_eq!(ok(&place, &["show", &first, "config", "retries"]), "1\n");
    ok(&place, &["revert", &newest]);
    assert_eq!(ok(&place, &["config", "get", "retries"]), "1\n");
    // A later value conflicts with a second revert.
    ok(&place, &["config", "set", "retries", "3"]);
    let refused = run(&place, &["revert", &newest]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{}", refused.err);

    let out = ok(&place, &["history", "credential", "alice", "--output", "json"]);
    let set = serde_json::from_str::<Value>(&out).unwrap()[0]["id"].as_str().unwrap().to_owned();
    ok(&place, &["credential", "delete", "alice"]);
    assert_eq!(ok(&place, &["show", &set, "credential", "alice"]), "\"token\": <hidden>\n");
    assert!(ok(&place, &["show", &set, "credential", "alice", "--reveal"]).contains("ya29"));
    assert_eq!(run(&place, &["show", &"1".repeat(40), "config", "retries"]).code, Some(1));
    assert_eq!(run(&place, &["history", "config", "never"]).code, Some(1));
}

/// An author can give a commit any date.
#[test]
fn an_impossible_date_does_not_end_the_command() {
    let place = with_a_remote();
    ok(&place, &["config", "set", "a", "1"]);
    let store = place.dir.path().join("store");
    for (date, shown) in
        [("@253402300800 +0000", "9999-12-31T23:59:59Z"), ("@253402300799 +0000", "9999-12-31T23:59:59Z")]
    {
        fs::write(store.join("config/a.json"), format!("\"{date}\"\n")).unwrap();
        let mut git = Command::new("git");
        git.args(["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "--quiet", "-am", "late"]);
        git.env("GIT_AUTHOR_DATE", date).env("GIT_COMMITTER_DATE", date).current_dir(&store);
        assert!(git.status().unwrap().success());
        for output in ["human", "json"] {
            let out = ok(&place, &["history", "config", "a", "--output", output]);
            assert!(out.contains(shown), "{out}");
        }
    }
}

#[test]
fn unsent_commits_are_reported() {
    let place = with_a_remote();
    ok(&place, &["config", "set", "a", "1"]);
    let remote = place.dir.path().join("remote.git");
    fs::rename(&remote, place.dir.path().join("away")).unwrap();
    for (key, out) in [
        ("b", "warning: 1 commit was not sent to the remote"),
        ("c", "warning: 2 commits were not sent to the remote"),
    ] {
        let kept = run(&place, &["config", "set", key, "1"]);
        assert_eq!((kept.code, kept.out.as_str()), (Some(0), ""));
        assert!(kept.err.starts_with(out) && kept.err.contains("can't be reached"), "{}", kept.err);
    }
    // A remote that refuses, because it has the branch checked out.
    init(place.dir.path(), &["remote.git"]);
    let kept = run(&place, &["config", "get", "c"]);
    assert_eq!((kept.code, kept.out.as_str()), (Some(0), "1\n"));
    assert!(kept.err.contains("not sent to the remote: "), "{}", kept.err);
    fs::remove_dir_all(&remote).unwrap();
    fs::rename(place.dir.path().join("away"), &remote).unwrap();
    assert_eq!(ok(&place, &["config", "get", "c"]), "1\n");
    assert!(!ok(&place, &["stats"]).contains("warning: "));
}

#[test]
fn commits_are_fetched_and_sent_manually() {
    let place = with_a_remote();
    let remote = place.dir.path().join("remote.git");
    let on = |clone: &str, line: &[&str]| {
        let url = format!("git:./{clone}?remote={}&pull=manual&push=manual", remote.display());
        ended(bare(line).env("STORAGE_URL", url).current_dir(place.dir.path()).output().unwrap())
    };
    let said = |clone: &str, line: &[&str]| {
        let ended = on(clone, line);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{clone} {line:?}");
        ended.out
    };
    said("one", &["config", "set", "a", "1"]);
    assert_eq!(said("one", &["push"]), "ahead   0\nbehind  0\n");
    // Another clone, which then has a commit that the first has not fetched.
    assert_eq!(said("two", &["pull"]), "ahead   0\nbehind  0\n");
    assert_eq!(said("two", &["config", "get", "a"]), "1\n");
    said("two", &["config", "set", "a", "2"]);
    said("two", &["push"]);
    assert_eq!(said("one", &["config", "get", "a"]), "1\n");
    let pulled: Value = serde_json::from_str(&said("one", &["pull", "--output", "json"])).unwrap();
    assert_eq!(pulled, serde_json::json!({ "ahead": 0, "behind": 0 }));
    assert_eq!(said("one", &["config", "get", "a"]), "2\n");

    // Both clones change the value.
    said("one", &["config", "set", "a", "3"]);
    said("two", &["config", "set", "a", "4"]);
    said("two", &["push"]);
    for line in ["pull", "push"] {
        let refused = on("one", &[line]);
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{}", refused.err);
        assert!(refused.err.contains("change the same record"), "{}", refused.err);
    }
    assert_eq!(said("one", &["config", "get", "a"]), "3\n");
    let other = place.run(&["pull"]);
    assert_eq!(
        (other.code, other.err.as_str()),
        (Some(6), "error: `File` cannot have a remote; backends that can: `Git`\n")
    );
}

#[test]
fn a_dry_run_to_a_missing_store_knows_its_kinds() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    place.ok(&["usage", "increment", "k", "f", "1"]);
    for (line, outcome) in [
        (&["copy", "file:./store", "git:./new", "--dry-run"][..], "not_applied"),
        (&["copy", "file:./store", "git:./new"], "partly_applied"),
    ] {
        let moved = place.run(&[line, &["--output", "json"]].concat());
        assert_eq!(moved.code, Some(4), "{}", moved.err);
        let report: Value = serde_json::from_str(&moved.out).unwrap();
        assert_eq!(
            (&report["total"]["written"], &report["usage"]["failed"]),
            (&serde_json::json!(1), &serde_json::json!(1))
        );
        let error: Value = serde_json::from_str(&moved.err).unwrap();
        assert_eq!(error["error"]["outcome"], outcome);
    }
}

#[test]
fn a_clone_that_can_not_be_made_leaves_no_empty_store() {
    let place = with_a_remote();
    for parameters in ["", "?remote=./gone.git", "?remote=./gone.git&pull=manual"] {
        let url = format!("git:./typo{parameters}");
        let pull =
            |line| ended(bare(line).env("STORAGE_URL", &url).current_dir(place.dir.path()).output().unwrap());
        let failed = pull(&["pull"]);
        assert_ne!(failed.code, Some(0), "{url}");
        assert!(failed.err.contains("remote"), "{}", failed.err);
        assert!(!place.dir.path().join("typo").exists(), "{url}");
        assert_ne!(pull(&["config", "list"]).code, Some(0), "{url}");
    }
}

/// Like a host's directory in a container. Only root can change the owner of files.
#[test]
fn a_repository_of_another_user_can_be_allowed() {
    if !is_root() {
        return;
    }
    let place = with_a_remote();
    let home = place.dir.path().join("home");
    fs::create_dir(&home).unwrap();
    symlink(".", place.dir.path().join("link")).unwrap();
    ok(&place, &["config", "set", "a", "1"]);
    let run = |home: Option<&Path>, line: &[&str]| {
        let remote = place.dir.path().join("remote.git");
        let mut command = bare(line);
        command.env("STORAGE_URL", format!("git:link/store?pull=manual&remote={}", remote.display()));
        command.env_remove("HOME").env_remove("XDG_CONFIG_HOME").envs(home.map(|home| ("HOME", home)));
        ended(command.current_dir(place.dir.path()).output().unwrap())
    };
    let get = ["config", "get", "a"];
    assert_eq!(run(Some(&home), &get).code, Some(0));
    for (name, line) in [("store", &get[..]), ("remote.git", &["pull"])] {
        let path = place.dir.path().join(name);
        let given = Command::new("chown").args(["-R", "4242"]).arg(&path).status().unwrap();
        assert!(given.success());
        let refused = run(Some(&home), line);
        assert_eq!(refused.code, Some(5), "{}", refused.err);
        assert!(refused.err.contains("belongs to another user: `git config"), "{}", refused.err);
        // The command in the error helps as printed.
        let said = refused.err.split('`').nth(1).unwrap();
        assert!(said.contains(&format!("'{}'", path.canonicalize().unwrap().display())), "{said}");
        let mut shell = Command::new("sh");
        let done = shell.args(["-c", said]).env("HOME", &home).env_remove("XDG_CONFIG_HOME").status();
        assert!(done.unwrap().success());
        let allowed = run(Some(&home), line);
        assert_eq!((allowed.code, allowed.err.as_str()), (Some(0), ""), "{name}");
        let homeless = run(None, line);
        assert!(homeless.code == Some(5) && homeless.err.contains("HOME"), "{}", homeless.err);
        let own = Command::new("chown").args(["-R", "0"]).arg(&path).status().unwrap();
        assert!(own.success());
    }
}

/// In a container `.git` can be a volume. Runs only if the user may create mounts.
#[cfg(target_os = "linux")]
#[test]
fn the_repository_can_be_on_another_file_system_than_its_files() {
    let place = Place::new();
    let script = r#"
        set -e
        mkdir -p store/.git
        mount -t tmpfs none store/.git
        [ "$1" ] || exit 0
        git init --quiet -b main store
        for value in 1 2 3; do "$1" --url git:store config set a $value; done
        : > store/.gateway-storage.new
        : > store/.git/gateway-storage/writing
        "$1" --url git:store config get a
        cat store/config/a.json
        ls -A store
        git -C store status --porcelain"#;
    let run = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh", program]);
        command.current_dir(place.dir.path()).env_remove("STORAGE_URL").output()
    };
    if !run("").is_ok_and(|mounted| mounted.status.success()) {
        return;
    }
    let ended = ended(run(env!("CARGO_BIN_EXE_storage")).unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    assert_eq!(ended.out, "3\n3\n.git\nconfig\n");
}

/// The request to a proxy that refuses all, if there was one.
#[cfg(feature = "git-https")]
fn asked_of_a_proxy(no_proxy: &str) -> Option<String> {
    use std::{
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        process::Stdio,
    };

    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        // The client may have ended.
        drop(stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
        line
    });
    let mut command = bare(&["config", "set", "a", "1"]);
    let url = "git:./store?remote=https://git.example.invalid/team/x.git";
    command.current_dir(place.dir.path()).env("STORAGE_URL", url).env_remove("NO_PROXY");
    command.env("https_proxy", format!("http://{address}")).env("no_proxy", no_proxy);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = ended(crate::output_of(child));
    assert_eq!(ended.code, Some(5), "{}", ended.err);
    drop(TcpStream::connect(address));
    Some(proxy.join().unwrap()).filter(|line| !line.is_empty())
}

#[cfg(feature = "git-https")]
#[test]
fn a_remote_is_reached_through_the_proxy_of_the_environment() {
    let asked = asked_of_a_proxy("").expect("the proxy was not asked");
    assert!(asked.starts_with("CONNECT git.example.invalid:443 "), "{asked}");
    assert_eq!(asked_of_a_proxy("git.example.invalid"), None);
}

/// With git's own server behind TLS and a login.
#[cfg(feature = "git-https")]
#[test]
fn a_token_is_read_for_each_connection() {
    const SERVER: &str = r#"
import base64, http.server, os, ssl, subprocess

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers: self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def body(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        body = b''
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body
    def do_GET(self):
        body, wanted = self.body(), b'me:' + open('wanted', 'rb').read()
        shown = self.headers.get('Authorization', 'Basic ').split()[1:]
        if not shown or base64.b64decode(shown[0]) != wanted:
            return self.answer(401, [('WWW-Authenticate', 'Basic realm=x')], b'')
        path, _, query = self.path.partition('?')
        backend = dict(os.environ, GIT_PROJECT_ROOT=os.getcwd(), GIT_HTTP_EXPORT_ALL='1', PATH_INFO=path,
            QUERY_STRING=query, REQUEST_METHOD=self.command, REMOTE_USER='me', CONTENT_LENGTH=str(len(body)),
            CONTENT_TYPE=self.headers.get('Content-Type', ''))
        out = subprocess.run(['git', 'http-backend'], input=body, env=backend, capture_output=True).stdout
        head, _, body = out.partition(b'\r\n\r\n')
        headers = [line.split(': ', 1) for line in head.decode().split('\r\n')]
        status = [int(value.split()[0]) for name, value in headers if name == 'Status'] or [200]
        self.answer(status[0], [each for each in headers if each[0] != 'Status'], body)
    do_POST = do_GET

server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;
    let place = with_a_remote();
    let dir = place.dir.path();
    let made = Command::new("openssl")
        .args("req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2".split(' '))
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .current_dir(dir)
        .output();
    assert!(made.expect("openssl is installed").status.success());
    let mut server = Command::new("python3")
        .args(["-c", SERVER])
        .current_dir(dir)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("python3 is installed");
    let mut port = String::new();
    let out = server.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut port).unwrap();
    let remote = format!("https://localhost:{}/remote.git", port.trim());
    let run = |options: &str, line: &[&str]| {
        let mut command = bare(line);
        command.env("STORAGE_URL", format!("git:./store?username=me&remote={remote}{options}"));
        command.env("SSL_CERT_FILE", dir.join("cert.pem")).current_dir(dir);
        for proxy in ["https_proxy", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        ended(command.output().unwrap())
    };
    let tell = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    let results: Vec<Ended> = ["one", "two"]
        .into_iter()
        .map(|token| {
            tell("wanted", token);
            tell("token", &format!("{token}\n"));
            run("&token_file=token", &["config", "set", "a", &format!("\"{token}\"")])
        })
        .collect();
    tell("token", "three");
    let failures = [
        (run("&token_file=token", &["pull"]), "the remote refuses the login"),
        (run("&token_file=nothing", &["pull"]), "the secret in the file nothing can't be read"),
        (run("&token_env=OUR_TOKEN", &["pull"]), "the environment variable OUR_TOKEN is not set"),
        (run("", &["pull"]), "name its token with `token_env` or `token_file`"),
    ];
    server.kill().unwrap();
    server.wait().unwrap();
    for ended in results {
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "the token is read again");
    }
    for (ended, says) in failures {
        assert!(ended.code == Some(5) && ended.err.contains(says), "{says}: {}", ended.err);
        assert!(!ended.err.contains("three"));
    }
    let there = Command::new("git").args(["-C", "remote.git", "log", "--oneline"]).current_dir(dir).output();
    assert_eq!(String::from_utf8(there.unwrap().stdout).unwrap().lines().count(), 2);
}
