//! The layout that is a file: the document that the Go program exported.

use std::{io::Read, path::Path};

use super::{Layout, directory::open_file};
use crate::{
    Credential, Error, ErrorKind, Record, Result,
    archive::{self, GoDocument},
    model::Piece,
};

/// How much of a file is looked at to tell what it is.
const BEGINNING: u64 = 4096;

/// Which layouts a file may be of.
pub(super) fn recognise(path: &Path) -> Result<Vec<Layout>> {
    let mut beginning = Vec::new();
    open_file(path)?.take(BEGINNING).read_to_end(&mut beginning).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("{} can't be read", path.display())).with_source(error)
    })?;
    if archive::is_export(&beginning) {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            format!("{} is an export of this crate: import it instead", path.display()),
        ));
    }
    Ok(if archive::is_go(&beginning) { vec![Layout::Document] } else { Vec::new() })
}

/// All of it: its records are in another order than ours.
pub(super) fn read(path: &Path) -> Result<Vec<Piece>> {
    let GoDocument { backend, records, remarks, .. } = archive::read_go(open_file(path)?)?;
    let is_mongodb = backend.as_deref() == Some("mongodb");
    let remarks = remarks.into_iter().map(Piece::Remark);
    let records = records.into_iter().map(|record| match record {
        Record::Credential { id, credential } if is_mongodb => {
            let credential = without_added(id.as_str(), &credential)?;
            Ok(Piece::Record(Record::Credential { id, credential }))
        }
        record => Ok(Piece::Record(record)),
    });
    let added = is_mongodb.then(|| {
        Piece::left_out(
            "credentials",
            "`updated_at` of each, which the Go program added, and `id`, which is the key",
        )
    });
    remarks.chain(added).map(Ok).chain(records).collect()
}

/// A credential without what the MongoDB backend had added to it.
fn without_added(id: &str, credential: &Credential) -> Result<Credential> {
    let mut fields = credential.fields().clone();
    if fields.get("id").is_some_and(|found| found == id) {
        fields.remove("id");
    }
    fields.remove("updated_at");
    Credential::new(fields)
}
