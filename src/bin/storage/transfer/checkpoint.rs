//! The file of a copy's checkpoint.

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use gateway_storage::migrate::Checkpoint;

use crate::term::failure::Failure;

/// The checkpoint of a copy between these stores: in the given file, or else in one for these two stores in
/// the user's state directory.
pub(super) fn checkpoint(
    source: &str,
    target: &str,
    file: Option<&Path>,
    resume: bool,
) -> Result<Option<Checkpoint>, Failure> {
    let path = match file {
        Some(file) => Some(file.to_owned()),
        None => default_path(source, target, resume)?,
    };
    let checkpoint = path.map(|path| Checkpoint::new(path, source, target));
    Ok(if resume { checkpoint.map(Checkpoint::resuming) } else { checkpoint })
}

/// The file in the state directory, which is created. Without a directory a copy has no checkpoint, unless it
/// is to resume.
fn default_path(source: &str, target: &str, resume: bool) -> Result<Option<PathBuf>, Failure> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let failure = match state.map(|state| state.join("gateway-storage")) {
        Some(directory) => match fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
            Ok(()) => {
                return Ok(Some(directory.join(format!("copy-{}.json", Checkpoint::name(source, target)))));
            }
            Err(error) => Failure::unreadable(&format!("the directory `{}`", directory.display()), &error),
        },
        None => Failure::usage("neither XDG_STATE_HOME nor HOME is set, so there is no checkpoint")
            .hint("name one with --checkpoint"),
    };
    if resume { Err(failure) } else { Ok(None) }
}
