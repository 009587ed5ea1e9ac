//~ error[E0277]: `gateway_storage::Credential` doesn't implement `std::fmt::Display`
use gateway_storage::Credential;

fn main() {
    let _ = |credential: Credential| println!("{credential}");
}
