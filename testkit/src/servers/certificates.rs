//! Makes certificates for a server on `localhost` and its client.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn run(folder: &Path, arguments: &str) -> Output {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder).args(arguments.split(' ')).output().expect("these tests need openssl")
}

/// Runs openssl in a directory. It must succeed.
pub fn openssl(folder: &Path, arguments: &str) {
    let ran = run(folder, arguments);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// A certificate of X.509 version 1, of this key. OpenSSL 3.2 and later create one only on request.
pub fn old(folder: &Path, key: &str, certificate: &str) {
    let made = format!("req -new -subj /CN=localhost -key {key} -days 30");
    if !run(folder, &format!("{made} -x509 -x509v1 -out {certificate}")).status.success() {
        openssl(folder, &format!("{made} -out old.csr"));
        openssl(folder, &format!("x509 -req -in old.csr -signkey {key} -days 30 -out {certificate}"));
    }
    let text = run(folder, &format!("x509 -in {certificate} -noout -text"));
    assert!(String::from_utf8_lossy(&text.stdout).contains("Version: 1 "), "not of version 1");
}

/// Two authorities, and a server's and a client's certificate that the first one signed.
pub fn make(folder: &Path) {
    for (authority, subject) in [("ca", "/CN=trusted"), ("other", "/CN=stranger")] {
        openssl(
            folder,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 30 -subj {subject} -keyout {authority}.key -out {authority}.crt"
            ),
        );
    }
    fs::write(folder.join("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    fs::write(folder.join("badge"), "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n").unwrap();
    for (name, subject, extensions) in
        [("server", "/CN=localhost", "names"), ("client", "/CN=badge", "badge")]
    {
        openssl(
            folder,
            &format!("req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {extensions} -out {name}.crt"
            ),
        );
    }
    // Of the server's own key: as its own authority; of X.509 version 1, as a request without extensions
    // makes it; for another host; expired.
    openssl(
        folder,
        "req -x509 -key server.key -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost -out self.crt",
    );
    let signed = "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial";
    old(folder, "server.key", "old.crt");
    openssl(folder, &format!("{signed} -days -1 -extfile names -out stale.crt"));
    fs::write(folder.join("elsewhere"), "subjectAltName=DNS:elsewhere\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(folder, &format!("{signed} -days 30 -extfile elsewhere -out elsewhere.crt"));
    // As its own authority, for another host.
    openssl(
        folder,
        "req -x509 -key server.key -days 30 -subj /CN=localhost -addext subjectAltName=DNS:elsewhere -out lone.crt",
    );
}
