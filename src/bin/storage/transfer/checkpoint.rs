//! The file of a copy's checkpoint.

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use gateway_storage::{Error, migrate::Checkpoint};

use crate::term::failure::Failure;

/// A checkpoint and its path.
pub(super) struct CheckpointFile {
    path: PathBuf,
    pub(super) checkpoint: Checkpoint,
}

impl CheckpointFile {
    /// The checkpoint of a copy between these stores: in the given file, or else in one for these two stores in
    /// the user's state directory.
    pub(super) fn of(
        source: &str,
        target: &str,
        file: Option<&Path>,
        resume: bool,
    ) -> Result<Option<Self>, Failure> {
        let path = match file {
            Some(file) => Some(file.to_owned()),
            None => default_path(source, target, resume)?,
        };
        Ok(path.map(|path| {
            let checkpoint = Checkpoint::new(&path, source, target);
            let checkpoint = if resume { checkpoint.resuming() } else { checkpoint };
            Self { path, checkpoint }
        }))
    }

    /// The copy could not start. If the checkpoint is the cause, the hint names its path.
    pub(super) fn failure(&self, error: Error) -> Failure {
        let names_it = error.to_string().contains("checkpoint");
        let failure = Failure::from(error);
        match names_it {
            true => {
                failure.hint(format!("the checkpoint is `{}`: remove it to start over", self.path.display()))
            }
            false => failure,
        }
    }
}

/// Creates the state directory. Without it a copy runs without a checkpoint, unless it must resume.
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
