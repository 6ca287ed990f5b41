use proptest::prelude::*;

use super::*;
use crate::{Sense, SenseKey, asc};

fn parsed(cdb: &[u8]) -> Result<Command, Refusal> {
    let entry = find(cdb, Features::ALL).expect("a command there is");
    parse(entry, Features::ALL, cdb)
}

#[test]
fn each_form_of_read_has_its_fields_where_the_standard_draws_them() {
    let extent =
        |lba, blocks, force, length_at| Command::Read(Extent { lba, blocks, force, length_at });
    assert_eq!(parsed(&[8, 1, 2, 3, 0, 0]), Ok(extent(0x010203, 256, false, 4)));
    assert_eq!(parsed(&[0x28, 8, 0, 0, 1, 0, 0, 0, 7, 0]), Ok(extent(0x100, 7, true, 7)));
    let twelve = [0xa8, 0, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0];
    assert_eq!(parsed(&twelve), Ok(extent(9, 0x10000, false, 6)));
    let sixteen = [0x88, 0x18, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0];
    assert_eq!(parsed(&sixteen), Ok(extent(1 << 40, 5, true, 10)));
}

#[test]
fn a_reserved_bit_is_refused_with_its_place() {
    // RDPROTECT is bits 7 to 5 of byte 1.
    let refused = parsed(&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0]);
    let sense = Sense {
        specific: Some([0xcd, 0, 1]),
        ..Sense::new(SenseKey::IllegalRequest, asc::FIELD_IN_CDB)
    };
    assert_eq!(refused, Err(Refusal::Check(sense)));
    assert!(parsed(&[0x00, 0, 0, 0, 0, 0x04]).is_err(), "NACA");
}

#[test]
fn unknown_codes_and_unknown_actions_are_told_apart() {
    assert_eq!(find(&[0xff], Features::ALL).err(), Some(Unknown::OperationCode));
    assert_eq!(find(&[0x9e, 0x1f], Features::ALL).err(), Some(Unknown::ServiceAction));
    let thick = Features { unmap: false, ..Features::ALL };
    assert_eq!(find(&[0x42, 0], thick).err(), Some(Unknown::OperationCode));
    assert_eq!(find(&[0x48, 2], thick).err(), Some(Unknown::ServiceAction));
}

proptest! {
    #[test]
    fn any_bytes_are_a_command_or_an_error(mut cdb in proptest::collection::vec(any::<u8>(), 0..20), row in 0..TABLE.len()) {
        if let Some(first) = cdb.first_mut() {
            *first = TABLE[row].code;
        }
        if let Ok(entry) = find(&cdb, Features::ALL) {
            let _ = parse(entry, Features::ALL, &cdb);
        }
    }
}
