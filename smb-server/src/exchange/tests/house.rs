//! A server that can be killed and started again, and its clients, each on one connection.

use std::sync::atomic::{AtomicBool, Ordering};

use smb_protocol::msg::{
    context::{self, DurableV2, Lease, LeaseState, ReconnectV2, names},
    create::{Access, CreateAction, CreateOptions, Disposition, RawContext, ShareAccess},
    oplock::OplockLevel,
    tree_connect::ShareCapabilities,
};

use state_store::{
    Answer, Batch, Commit, Entry, Listing, LocalStore, Owner, Revision, Store, StoreError, Watch,
};

use super::*;

/// All that a lease can be.
pub const RWH: LeaseState = LeaseState(7);

/// A server that can be killed and started again over the same folders.
pub struct House {
    pub folder: tempfile::TempDir,
    pub server: Arc<Server>,
    pub runtime: tokio::runtime::Runtime,
}

/// The server of a house.
pub fn serve(folder: &Path) -> Arc<Server> {
    serve_with(folder, "")
}

/// As [`serve`], with more lines of configuration.
pub fn serve_with(folder: &Path, more: &str) -> Arc<Server> {
    let text = format!(
        "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\nencryption='off'\n\
         [[user]]\nname='u'\npassword='p'\n[[user]]\nname='v'\npassword='p'\n\
         [[share]]\nname='ca'\npath='files'\nusers=['u','v']\ncontinuously_available=true\n\
         [[share]]\nname='ca2'\npath='files'\nusers=['u','v']\ncontinuously_available=true\n\
         [[share]]\nname='plain'\npath='files'\nusers=['u','v']\n{more}",
        folder.join("state").display()
    );
    let config = Config::parse(&text, &folder.join("c")).unwrap();
    Arc::new(Server::new(config).unwrap())
}

impl House {
    /// Folders and a server that remembers nothing.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { server: serve(folder.path()), folder, runtime }
    }

    pub fn new() -> Self {
        let house = Self::empty();
        house.recover();
        house
    }

    /// One whose server remembers opens in a store that has no more room once that is said; it
    /// cannot be started again.
    pub fn that_fills() -> (Self, Arc<AtomicBool>) {
        let house = Self::empty();
        let store = LocalStore::open(house.folder.path(), "filling").unwrap().store;
        let full = Arc::new(AtomicBool::new(false));
        let fills = full.clone();
        house.server.open_files.persistent_opens.begin(Guarded::new(store, move |batch| {
            let full = fills.load(Ordering::Relaxed) && !batch.only_deletes();
            if full { Err(StoreError::Full) } else { Ok(()) }
        }));
        (house, full)
    }

    pub fn recover(&self) {
        let _inside = self.runtime.enter();
        self.server.recover().unwrap();
    }

    /// Recovers as a server does that has the shares from another node, whose locks the file system may
    /// hold for so long.
    pub fn take_over(&self, locks: std::time::Duration) {
        let _inside = self.runtime.enter();
        let opened = LocalStore::open(&self.folder.path().join("state"), "opens").unwrap();
        self.server.take_over(opened, locks, true).unwrap();
    }

    pub fn files(&self) -> std::path::PathBuf {
        self.folder.path().join("files")
    }

    /// Ends the server like `kill -9` does. Clients that are connected must be given.
    pub fn kill(&mut self, clients: Vec<Guest>) {
        self.server.open_files.persistent_opens.kill();
        // A process that ends lets go of all that it has locked.
        self.server.open_files.claim_nothing();
        drop(clients);
        self.server.open_files.disconnected.clear();
        let gone = Arc::downgrade(&self.server.open_files);
        self.server = serve(self.folder.path());
        assert!(gone.upgrade().is_none(), "nothing of it is left");
    }

    pub fn restart(&mut self, clients: Vec<Guest>) {
        self.kill(clients);
        self.recover();
    }

    pub fn guest(&self, guid: u8, user: &str, dialect: Dialect, share: &str) -> Guest {
        let mut guest = self.stranger();
        guest.login(guid, user, dialect);
        guest.connect(share);
        guest
    }

    /// A client that has not logged in.
    pub fn stranger(&self) -> Guest {
        let address = "127.0.0.1:1".parse().unwrap();
        Guest {
            exchange: Exchange::new(self.server.clone(), address, address),
            runtime: self.runtime.handle().clone(),
            caller: Caller::default(),
            capabilities: ShareCapabilities::NONE,
        }
    }

    pub fn one(&self) -> Guest {
        self.guest(1, "u", Dialect::SMB_3_0_2, "ca")
    }
}

/// A client on one connection.
pub struct Guest {
    pub exchange: Exchange,
    pub runtime: tokio::runtime::Handle,
    pub caller: Caller,
    pub capabilities: ShareCapabilities,
}

/// What a CREATE asks for.
#[derive(Clone)]
pub struct Ask {
    pub name: &'static str,
    pub access: Access,
    pub share: ShareAccess,
    pub options: CreateOptions,
    pub oplock: OplockLevel,
    pub durable: Option<DurableV2>,
    /// Asks for a durable open of version 1.
    pub durable_v1: bool,
    pub reconnect: Option<ReconnectV2>,
    /// Takes up an open as clients of version 1 do.
    pub reconnect_v1: Option<FileId>,
    pub lease: Option<Lease>,
}

/// Reads and writes a file of that name alone, and asks for no promise.
pub fn ask(name: &'static str) -> Ask {
    Ask {
        name,
        access: Access(0x0012_019f),
        share: ShareAccess::NONE,
        options: CreateOptions::NON_DIRECTORY_FILE,
        oplock: OplockLevel::NONE,
        durable: None,
        durable_v1: false,
        reconnect: None,
        reconnect_v1: None,
        lease: None,
    }
}

impl Ask {
    pub fn persistent(self, guid: u8) -> Self {
        let flags = DurableV2::PERSISTENT;
        let durable = Some(DurableV2 { timeout: 0, flags, create_guid: [guid; 16] });
        Self { durable, ..self }
    }

    pub fn lease(self, key: u8) -> Self {
        let lease = Lease { key: [key; 16], state: RWH, flags: 0, v2: Some(([0; 16], 5)) };
        Self { oplock: OplockLevel::LEASE, lease: Some(lease), ..self }
    }

    pub fn back(self, file_id: FileId, guid: u8) -> Self {
        let flags = DurableV2::PERSISTENT;
        let reconnect = Some(ReconnectV2 { file_id, create_guid: [guid; 16], flags });
        Self { durable: None, reconnect, ..self }
    }
}

/// What a CREATE gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub id: FileId,
    pub action: CreateAction,
    /// Time and flags of the durable answer.
    pub durable: Option<(u32, u32)>,
    pub lease: Option<(LeaseState, Option<u16>)>,
}

/// A request that was sent.
pub struct Begun {
    out: Vec<u8>,
    waits: Vec<WaitingFuture>,
}

impl Begun {
    pub fn waits(&self) -> bool {
        !self.waits.is_empty()
    }

    /// How all that was answered so far ended.
    pub fn answered(&self) -> Vec<NtStatus> {
        answers(&self.out).iter().map(|(header, _)| header.status).collect()
    }

    /// How it was answered at once.
    pub fn status(&self) -> NtStatus {
        answers(&self.out).pop().unwrap().0.status
    }
}

impl Asks for Guest {
    fn ask(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> (Header, Vec<u8>) {
        let begun = self.begin(command, body);
        self.finish(begun)
    }

    fn caller(&mut self) -> &mut Caller {
        &mut self.caller
    }
}

impl Deref for Guest {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Caller {
        &mut self.caller
    }
}

impl Guest {
    /// Sends a request, which is answered or waits.
    pub fn begin(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> Begun {
        let mut message = self.caller.message(command, body);
        let mut out = Vec::new();
        let _inside = self.runtime.enter();
        let waits = match self.exchange.receive(&mut message, &mut out).unwrap() {
            Frame::Answered => Vec::new(),
            Frame::Waits(waits) => waits,
        };
        Begun { out, waits }
    }

    /// Waits for what the server waits for next, and has it go on.
    pub fn go_on(&mut self, begun: &mut Begun) {
        let _inside = self.runtime.enter();
        let done = self.runtime.block_on(begun.waits.remove(0));
        begun.waits.extend(self.exchange.complete_at_once(done, &mut begun.out).unwrap());
    }

    /// The answer to a request.
    pub fn finish(&mut self, begun: Begun) -> (Header, Vec<u8>) {
        let Begun { mut out, mut waits } = begun;
        let _inside = self.runtime.enter();
        while let Some(wait) = waits.pop() {
            let done = self.runtime.block_on(wait);
            waits.extend(self.exchange.complete_at_once(done, &mut out).unwrap());
        }
        answers(&out).pop().unwrap()
    }

    pub fn login(&mut self, guid: u8, user: &str, dialect: Dialect) {
        assert_eq!(self.try_login(guid, user, dialect), NtStatus::SUCCESS);
    }

    pub fn try_login(&mut self, guid: u8, user: &str, dialect: Dialect) -> NtStatus {
        let offer = negotiate::Request {
            dialects: vec![dialect],
            security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
            capabilities: negotiate::Capabilities::PERSISTENT_HANDLES,
            client_guid: [guid; 16],
            ..Default::default()
        };
        self.try_log_in(user, &offer)
    }

    pub fn connect(&mut self, share: &str) {
        let (tree, body) = self.tree_connect(share);
        self.tree = tree;
        self.capabilities = tree_connect::Response::parse(&body).unwrap().capabilities;
    }

    pub fn create(&mut self, ask: &Ask) -> Result<Got, NtStatus> {
        let begun = self.begin_create(ask);
        self.finish_create(begun)
    }

    pub fn begin_create(&mut self, ask: &Ask) -> Begun {
        let durable = ask.durable.map(|durable| durable.to_bytes());
        let reconnect = ask.reconnect.map(|reconnect| reconnect.to_bytes());
        let lease = ask.lease.as_ref().map(|lease| lease.to_bytes());
        let reconnect_v1 = ask.reconnect_v1.map(|id| id.to_bytes().to_vec());
        let durable_v1 = ask.durable_v1.then(|| vec![0; 16]);
        let all = [
            (names::DHNQ, durable_v1),
            (names::DH2Q, durable),
            (names::DH2C, reconnect),
            (names::DHNC, reconnect_v1),
            (names::RQLS, lease),
        ];
        let contexts = all
            .iter()
            .filter_map(|(name, data)| data.as_ref().map(|data| RawContext { name, data }));
        let request = create::Request {
            access: ask.access,
            share: ask.share,
            disposition: Disposition::OPEN_IF,
            options: ask.options,
            oplock: ask.oplock,
            name: ask.name.into(),
            impersonation: 2,
            contexts: contexts.collect(),
            ..Default::default()
        };
        self.begin(Command::CREATE, |out| request.encode(out))
    }

    pub fn finish_create(&mut self, begun: Begun) -> Result<Got, NtStatus> {
        let (header, body) = self.finish(begun);
        if header.status != NtStatus::SUCCESS {
            return Err(header.status);
        }
        let response = create::Response::parse(&body).unwrap();
        let find = |name| context::find(&response.contexts, name);
        let word =
            |data: &[u8], at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
        Ok(Got {
            id: response.file_id,
            action: response.action,
            durable: find(names::DH2Q).map(|data| (word(data, 0), word(data, 4))),
            lease: find(names::RQLS).map(|data| {
                let lease = Lease::parse(data).unwrap();
                (lease.state, lease.v2.map(|(_, epoch)| epoch))
            }),
        })
    }

    pub fn close(&mut self, id: FileId) -> NtStatus {
        let request = close::Request { flags: 0, file_id: id };
        self.ask(Command::CLOSE, |out| request.encode(out)).0.status
    }

    pub fn write(&mut self, id: FileId, offset: u64, data: &[u8]) -> NtStatus {
        let request = write::Request { offset, file_id: id, data, ..Default::default() };
        self.ask(Command::WRITE, |out| request.encode(out)).0.status
    }

    pub fn control(&mut self, id: FileId, code: FsctlCode, input: &[u8]) -> NtStatus {
        let request =
            ioctl::Request { code, file_id: id, input, flags: 1, ..ioctl::Request::default() };
        self.ask(Command::IOCTL, |out| request.encode(out)).0.status
    }

    /// Has an open kept for a minute when its client is away.
    pub fn make_resilient(&mut self, id: FileId) -> NtStatus {
        let input = [60_000_u32.to_le_bytes(), [0; 4]].concat();
        self.control(id, FsctlCode::LMR_REQUEST_RESILIENCY, &input)
    }

    pub fn lock(&mut self, id: FileId, offset: u64, sequence: u32, flags: u32) -> NtStatus {
        let locks = vec![lock::Element { offset, length: 10, flags: lock::LockFlags(flags) }];
        let request = lock::Request { file_id: id, sequence, locks };
        self.ask(Command::LOCK, |out| request.encode(out)).0.status
    }

    pub fn set(&mut self, id: FileId, class: InfoClass, input: &[u8]) -> NtStatus {
        let begun = self.begin_set(id, class, input);
        self.finish(begun).0.status
    }

    pub fn begin_set(&mut self, id: FileId, class: InfoClass, input: &[u8]) -> Begun {
        let info_type = query_info::InfoType::FILE;
        let request =
            set_info::Request { info_type, class, file_id: id, input, ..Default::default() };
        self.begin(Command::SET_INFO, |out| request.encode(out))
    }
}

/// LOCK: exclusive, at once.
pub const OWN: u32 = 0x12;
/// LOCK: no more.
pub const UNLOCK: u32 = 4;

/// What somebody says of a commit that is to come.
type Before = dyn Fn(&Batch) -> Result<(), StoreError> + Send + Sync;

/// A store that asks somebody before each commit.
pub struct Guarded {
    inner: Arc<dyn Store>,
    before: Box<Before>,
    most: usize,
}

impl Guarded {
    pub fn new(
        inner: Arc<dyn Store>,
        before: impl Fn(&Batch) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, before: Box::new(before), most: usize::MAX })
    }

    /// One that takes so many changes at once, as etcd does.
    pub fn at_most(inner: Arc<dyn Store>, most: usize) -> Arc<Self> {
        let before = move |batch: &Batch| match batch.changes().len() {
            count if count > most => Err(StoreError::TooLong(count)),
            _ => Ok(()),
        };
        Arc::new(Self { inner, before: Box::new(before), most })
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guarded")
    }
}

impl Store for Guarded {
    fn owner(&self) -> Owner {
        self.inner.owner()
    }

    fn commit(&self, batch: Batch) -> Commit {
        match (self.before)(&batch) {
            Ok(()) => self.inner.commit(batch),
            Err(error) => Commit::ready(Err(error)),
        }
    }

    fn most_changes(&self) -> usize {
        self.most
    }

    fn read(&self, key: &[u8]) -> Answer<Option<Entry>> {
        self.inner.read(key)
    }

    fn list(&self, prefix: &[u8]) -> Answer<Listing> {
        self.inner.list(prefix)
    }

    fn watch(&self, prefix: &[u8], after: Revision) -> Answer<Watch> {
        self.inner.watch(prefix, after)
    }

    fn fence(&self, node: u16) -> Answer<Owner> {
        self.inner.fence(node)
    }

    fn join(&self, node: u16) -> Answer<Arc<dyn Store>> {
        self.inner.join(node)
    }

    fn commits(&self) -> u64 {
        self.inner.commits()
    }
}
