//! The messages of etcd's API version 3 that are used here (`etcdserverpb/rpc.proto`, `mvccpb/kv.proto`),
//! with the numbers that their fields have there.

use prost::{Message, Oneof};

/// In every answer: `ResponseHeader`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Header {
    /// Which cluster answered.
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    /// Which of its members.
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    /// The store's revision.
    #[prost(int64, tag = "3")]
    pub revision: i64,
    /// The member's term of Raft.
    #[prost(uint64, tag = "4")]
    pub raft_term: u64,
}

/// A key with its value and when it was set.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The revision at which the key came to be.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// The revision at which it was last set.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// How often it was set since it came to be.
    #[prost(int64, tag = "4")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// The lease it goes away with; 0 for none.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// `RangeRequest`: reads a key, or all of a range.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RangeRequest {
    /// The first key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The first key behind the range; nothing for one key alone.
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    /// Most keys of the answer; 0 for all.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// As it was at this revision; 0 for now.
    #[prost(int64, tag = "4")]
    pub revision: i64,
}

/// `RangeResponse`: the keys that were read.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RangeResponse {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// The keys in their order.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// There are more than the limit.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// `PutRequest`: sets a key to a value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
    /// The lease it goes away with; 0 for none.
    #[prost(int64, tag = "3")]
    pub lease: i64,
}

/// `DeleteRangeRequest` for one key: takes it away.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
}

/// An answer that only has a header.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
}

/// `RequestOp`: one step of a transaction.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RequestOp {
    /// What is to be done.
    #[prost(oneof = "Op", tags = "1, 2, 3")]
    pub request: Option<Op>,
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Op {
    /// Read keys.
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    /// Set a key.
    #[prost(message, tag = "2")]
    Put(PutRequest),
    /// Take a key away.
    #[prost(message, tag = "3")]
    Delete(DeleteRequest),
}

/// `ResponseOp`: what came of one step.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResponseOp {
    /// What came of it.
    #[prost(oneof = "OpDone", tags = "1, 2, 3")]
    pub response: Option<OpDone>,
}

/// What one step of a transaction came to.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum OpDone {
    /// The keys.
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    /// It is set.
    #[prost(message, tag = "2")]
    Put(Done),
    /// It is gone.
    #[prost(message, tag = "3")]
    Delete(Done),
}

/// `Compare`: what must be so of a key.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Compare {
    /// One of [`EQUAL`], [`GREATER`], [`LESS`].
    #[prost(int32, tag = "1")]
    pub result: i32,
    /// One of [`CREATE`], [`MOD`], [`VALUE`], [`LEASE`].
    #[prost(int32, tag = "2")]
    pub target: i32,
    /// The key.
    #[prost(bytes = "vec", tag = "3")]
    pub key: Vec<u8>,
    /// With what it is compared.
    #[prost(oneof = "With", tags = "5, 6, 7, 8")]
    pub with: Option<With>,
}

/// `Compare.EQUAL`
pub const EQUAL: i32 = 0;
/// `Compare.GREATER`
pub const GREATER: i32 = 1;
/// `Compare.LESS`
pub const LESS: i32 = 2;
/// `Compare.CREATE`
pub const CREATE: i32 = 1;
/// `Compare.MOD`
pub const MOD: i32 = 2;
/// `Compare.VALUE`
pub const VALUE: i32 = 3;
/// `Compare.LEASE`
pub const LEASE: i32 = 4;

/// What a key is compared with.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum With {
    /// The revision at which it came to be; 0 if it is not there.
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    /// The revision at which it was set.
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    /// Its value; a key that is not there fails every comparison.
    #[prost(bytes, tag = "7")]
    Value(Vec<u8>),
    /// The lease it goes away with; 0 for none, or if it is not there.
    #[prost(int64, tag = "8")]
    Lease(i64),
}

/// `TxnRequest`: steps that are done together, on conditions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TxnRequest {
    /// All of them must hold.
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    /// Then this is done,
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
    /// else this.
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<RequestOp>,
}

/// `TxnResponse`: what a transaction came to.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TxnResponse {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// All comparisons held.
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    /// What each step came to.
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<ResponseOp>,
}

/// `WatchRequest` that begins a watch.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WatchRequest {
    /// What is watched.
    #[prost(message, optional, tag = "1")]
    pub create: Option<WatchCreate>,
}

/// `WatchCreateRequest`: what is to be watched, and from when.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WatchCreate {
    /// The first key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The first key behind the range.
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    /// The first revision that is told.
    #[prost(int64, tag = "3")]
    pub start_revision: i64,
}

/// `WatchResponse`: what a watch tells, in whole revisions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WatchResponse {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// The watch has begun.
    #[prost(bool, tag = "3")]
    pub created: bool,
    /// The watch is over.
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    /// Nothing before this revision is known any more, if it is not 0.
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    /// Why it is over.
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    /// What happened; always whole revisions.
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<WatchEvent>,
}

/// `mvccpb.Event`: a key was set or taken away.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WatchEvent {
    /// 0 if the key was set, 1 if it was taken away.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// The key as it is now.
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

/// `Event.DELETE`
pub const DELETE: i32 = 1;

/// `LeaseGrantRequest`: asks for a new lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GrantRequest {
    /// Seconds.
    #[prost(int64, tag = "1")]
    pub ttl: i64,
}

/// `LeaseGrantResponse` and `LeaseKeepAliveResponse`: a lease and its time.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaseResponse {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// The lease.
    #[prost(int64, tag = "2")]
    pub id: i64,
    /// Seconds that it has from now on; 0 or less if it is gone.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
}

/// `LeaseKeepAliveRequest` and `LeaseRevokeRequest`: name a lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseRequest {
    /// The lease.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// `AuthenticateRequest`: says who we are.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AuthenticateRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its password.
    #[prost(string, tag = "2")]
    pub password: String,
}

/// `AuthenticateResponse`: what says so from then on.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AuthenticateResponse {
    /// Goes with every request from then on.
    #[prost(string, tag = "2")]
    pub token: String,
}

/// `StatusRequest`: asks how a member is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StatusRequest {}

/// `StatusResponse`: how a member of etcd is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusResponse {
    /// Who answered and when.
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// The member's version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Bytes of its database.
    #[prost(int64, tag = "3")]
    pub db_size: i64,
    /// The member that leads; 0 for none.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by hand by the rules of the protocol-buffer encoding.
    #[test]
    fn messages_have_etcds_numbers() {
        let compare = Compare {
            result: GREATER,
            target: VALUE,
            key: b"k".to_vec(),
            with: Some(With::Value(b"v".to_vec())),
        };
        assert_eq!(compare.encode_to_vec(), b"\x08\x01\x10\x03\x1a\x01k\x3a\x01v");
        let put = PutRequest { key: b"k".to_vec(), value: b"v".to_vec(), lease: 5 };
        let op = RequestOp { request: Some(Op::Put(put)) };
        assert_eq!(op.encode_to_vec(), b"\x12\x08\x0a\x01k\x12\x01v\x18\x05");
        let event = b"\x5a\x0b\x08\x01\x12\x07\x0a\x01k\x18\x09\x20\x00";
        let told = WatchResponse::decode(&event[..]).unwrap();
        let kv = told.events[0].kv.clone().unwrap();
        assert_eq!((told.events[0].kind, kv.mod_revision), (DELETE, 9));
        let status = StatusResponse::decode(&b"\x12\x053.4.0\x18\x07\x20\x03"[..]).unwrap();
        assert_eq!((status.db_size, status.leader), (7, 3));
    }
}
