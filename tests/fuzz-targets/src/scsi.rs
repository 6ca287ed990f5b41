//! SCSI: command descriptor blocks and parameter lists.

use std::sync::Arc;

use block_io::{RawDisk, testing::MemFile};
use bytes::Bytes;
use scsi::{
    Device, LogicalUnit, Lun, Nexus, Rank, Request, Status, TaskAttribute, Units, UnitsOptions,
};
use tokio::runtime::{Builder, Runtime};

const SIZE: usize = 64 << 10;
/// MAXIMUM TRANSFER LENGTH, and what reports have beside it.
const LONGEST: usize = (16 << 20) + 4096;

thread_local! {
    static RUNTIME: Runtime =
        Builder::new_current_thread().build().expect("a runtime of one thread");
}

/// Commands to a small unit: the length of each block and of its data-out (two bytes), then both. A
/// command comes to an end, has sense data where its status says so, and gives no more than one may.
pub fn run(bytes: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(commands(bytes)));
}

async fn commands(mut bytes: &[u8]) {
    let file = MemFile::new();
    block_io::File::set_len(&file, SIZE as u64).await.expect("memory");
    let disk = RawDisk::open(Arc::new(file), 512).await.expect("a disk");
    let units = Units::new(UnitsOptions::default());
    let unit = LogicalUnit {
        removable: true,
        atomic_blocks: 8,
        ..LogicalUnit::new(Arc::new(disk), [7; 16])
    };
    units.add(0, unit).await.expect("a unit");
    let nexus = |id| Nexus { id, initiator: format!("iqn.{id},i,0x0").into(), port: 1 };
    let nexuses = [nexus(1), nexus(2)];
    nexuses.iter().for_each(|it| units.attach(it));
    for count in 0.. {
        let Some(([kind, high, low], rest)) = bytes.split_first_chunk::<3>() else { break };
        let length = usize::from(kind & 31).clamp(1, 32);
        let data = usize::from(u16::from_be_bytes([*high, *low]));
        let (cdb, rest) = rest.split_at(length.min(rest.len()));
        let (data_out, rest) = rest.split_at(data.min(rest.len()));
        bytes = rest;
        // SANITIZE goes on by itself, at a rate that the clock keeps.
        if cdb.is_empty() || cdb[0] == 0x48 || count == 64 {
            break;
        }
        let mut data_in = Vec::new();
        let data_out = &Bytes::copy_from_slice(data_out);
        let request = Request {
            lun: Lun([0; 8]),
            cdb,
            data_out,
            attribute: TaskAttribute::Simple,
            rank: Rank::MIDDLE,
        };
        let who = &nexuses[usize::from(kind >> 7)];
        let done = units.execute(who, request, &mut data_in).await;
        assert_eq!(done.sense.is_some(), done.status == Status::CheckCondition, "{cdb:x?}");
        assert!(data_in.len() <= LONGEST, "{} bytes of data-in", data_in.len());
        if let Some(sense) = &done.sense {
            assert!(units.encode_sense(Lun([0; 8]), sense).len() >= 8);
        }
    }
}

fn one(cdb: &[u8], data_out: &[u8]) -> Vec<u8> {
    let [high, low] = (data_out.len() as u16).to_be_bytes();
    [&[cdb.len() as u8, high, low][..], cdb, data_out].concat()
}

fn list(length: usize, put: &[(usize, &[u8])]) -> Vec<u8> {
    let mut list = vec![0; length];
    for (at, bytes) in put {
        list[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    list
}

/// Each family of commands, after the unit attention of the power on.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let ready = one(&[0; 6], &[]);
    let seed = |name: &str, commands: &[Vec<u8>]| {
        (name.to_owned(), [ready.clone(), commands.concat()].concat())
    };
    let populate = list(32, &[(14, &[0, 16]), (27, &[4])]);
    let using =
        list(552, &[(16, &[0xff, 0xff, 0, 1]), (22, &[1, 0xf8]), (534, &[0, 16]), (547, &[4])]);
    let unmap = list(24, &[(1, &[22]), (3, &[16]), (19, &[8])]);
    let reserve = list(24, &[(15, &[9])]);
    let select = list(24, &[(4, &[8, 18, 4])]);
    vec![
        seed(
            "media",
            &[
                one(&[0x2a, 8, 0, 0, 0, 1, 0, 0, 1, 0], &[5; 512]),
                one(&[0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0], &[]),
                one(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], &[5; 1024]),
                one(&[0x41, 0, 0, 0, 0, 1, 0, 0, 4, 0], &[6; 512]),
            ],
        ),
        seed(
            "reports",
            &[
                one(&[0x12, 1, 0x83, 1, 0, 0], &[]),
                one(&[0x1a, 0, 0x3f, 0, 255, 0], &[]),
                one(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]),
                one(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]),
            ],
        ),
        seed("unmap", &[one(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap)]),
        seed(
            "reserve",
            &[
                one(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &reserve),
                one(&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0], &[]),
            ],
        ),
        seed("mode", &[one(&[0x15, 0x10, 0, 0, 24, 0], &select)]),
        seed(
            "token",
            &[
                one(&[0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 32, 0, 0], &populate),
                one(&[0x84, 7, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]),
                one(&[0x83, 0x11, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 2, 40, 0, 0], &using),
            ],
        ),
        seed("copy", &[one(&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[0; 16])]),
    ]
}
