//! Reads the layout of an exported document.

use std::{io::Read, path::Path};

use super::{Layout, directory::open_file};
use crate::{
    Credential, Error, ErrorKind, Record, Result,
    archive::{self, GoDocument},
    model::Piece,
};

/// The number of bytes by which a document is recognized.
const BEGINNING: u64 = 4096;

/// The possible layouts of a file.
pub(super) fn recognize(path: &Path) -> Result<Vec<Layout>> {
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

/// Reads the whole document, because its records are in another order.
pub(super) fn read(path: &Path) -> Result<Vec<Piece>> {
    let GoDocument { backend, records, remarks, .. } = archive::read_go(open_file(path)?)?;
    let is_mongodb = backend.as_deref() == Some("mongodb");
    let remarks = remarks.into_iter().map(Piece::Remark);
    let records = records.into_iter().map(|record| match record {
        Record::Credential { id, credential } if is_mongodb => {
            let credential = without_added_fields(id.as_str(), &credential)?;
            Ok(Piece::Record(Record::Credential { id, credential }))
        }
        record => Ok(Piece::Record(record)),
    });
    let added = is_mongodb.then(|| {
        Piece::left_out("credentials", "`updated_at`, which gcli2api-go added, and `id`, which is the key")
    });
    remarks.chain(added).map(Ok).chain(records).collect()
}

/// A credential without the fields that the MongoDB backend of gcli2api-go added.
fn without_added_fields(id: &str, credential: &Credential) -> Result<Credential> {
    let mut fields = credential.fields().clone();
    if fields.get("id").is_some_and(|found| found == id) {
        fields.remove("id");
    }
    fields.remove("updated_at");
    Credential::new(fields)
}
