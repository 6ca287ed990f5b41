//! Virtual CPUs: one thread each, kicked out of the guest by a signal.
//!
//! ```text
//!  Parked ◄──────────── pause ───────────┐
//!    │ resume                            │   the thread holds the VcpuFd's lock only while
//!    └────────► Running (KVM_RUN) ───────┘   running, so a parked vCPU's state can be read
//!                  │ stop / guest power off  and written by others
//!                  ▼
//!                Ended
//! ```
//!
//! The signal handler sets `immediate_exit` through a thread-local pointer: a kick that arrives
//! before KVM_RUN makes that call return at once and is never lost. An exit for I/O is finished
//! by entering KVM_RUN once more (with `immediate_exit`) before the thread parks, so that no
//! half-done instruction is ever saved.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, Mutex, Once,
        atomic::{Ordering, fence},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::platform::{
    bus::{Bus, lock},
    error::{Error, panic_text},
    lifecycle::{Control, EndReason, Want},
    memory::GuestRam,
};

/// How long the end of a machine waits for a vCPU's thread. It takes much less unless the thread is
/// held up where no kick reaches it.
const PARK_LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

#[expect(unsafe_code, reason = "the handler writes the flag KVM reads")]
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.with(Cell::get);
    if !flag.is_null() {
        // SAFETY: the pointer is into this thread's mapping of kvm_run, which outlives the
        // time during which it is set (see `Kicked`).
        unsafe { ptr::write_volatile(flag, 1) };
    }
}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), on_kick) {
            tracing::error!(%error, "no handler for vCPU kicks");
        }
    });
}

/// While alive, kicks of this thread set `immediate_exit` of the vCPU.
struct Kicked;

impl Kicked {
    fn new(vcpu: &mut VcpuFd) -> Self {
        let flag = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.with(|cell| cell.set(flag));
        Self
    }
}

impl Drop for Kicked {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|cell| cell.set(ptr::null_mut()));
        fence(Ordering::SeqCst);
    }
}

/// The vCPUs of a VM.
#[derive(Debug)]
pub struct Vcpus {
    fds: Vec<Arc<Mutex<VcpuFd>>>,
    threads: Vec<JoinHandle<()>>,
    control: Arc<Control>,
}

impl Vcpus {
    /// Starts a thread for each vCPU, parked.
    pub fn start(
        name: &str,
        fds: Vec<VcpuFd>,
        pio: &Arc<Bus>,
        mmio: &Arc<Bus>,
        ram: &Arc<GuestRam>,
    ) -> Result<Self, Error> {
        install_handler();
        let control = Arc::new(Control::default());
        let fds: Vec<_> = fds.into_iter().map(|fd| Arc::new(Mutex::new(fd))).collect();
        let mut vcpus = Self { fds, threads: Vec::new(), control };
        for (index, fd) in vcpus.fds.iter().enumerate() {
            let worker = Worker {
                index,
                fd: fd.clone(),
                pio: pio.clone(),
                mmio: mmio.clone(),
                control: vcpus.control.clone(),
                _ram: ram.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("{name}/vcpu{index}"))
                .spawn(move || worker.run())
                .map_err(Error::os("start a vCPU thread"))?;
            vcpus.threads.push(thread);
        }
        Ok(vcpus)
    }

    /// Shared state, for devices that end the guest and those who wait for its end.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The vCPUs; their locks are free while they are parked.
    pub fn fds(&self) -> &[Arc<Mutex<VcpuFd>>] {
        &self.fds
    }

    /// Parks all vCPUs; whether they are by `deadline`. If not, they still park as soon as they
    /// can, unless they are let run again.
    pub fn pause(&self, deadline: Instant) -> bool {
        self.control.hold();
        self.wait_parked(deadline)
    }

    /// Kicks vCPUs that are not to run until they are parked; whether they are by `deadline`.
    pub fn wait_parked(&self, deadline: Instant) -> bool {
        let mut shared = lock(&self.control.shared);
        while shared.running > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            drop(shared);
            self.kick();
            shared = lock(&self.control.shared);
            if shared.running > 0 {
                // Kicked again if one was missed on its way into the loop.
                let wait = Duration::from_millis(5);
                shared = self
                    .control
                    .changed
                    .wait_timeout(shared, wait)
                    .unwrap_or_else(|poison| poison.into_inner())
                    .0;
            }
        }
        true
    }

    /// Lets parked vCPUs run, unless the guest has ended.
    pub fn resume(&self) {
        self.control.run();
    }

    /// Ends all vCPU threads and waits for them. One that does not come back in time is left to
    /// itself: it has all that it uses for its own, and does not enter the guest again.
    pub fn stop(&mut self) {
        self.control.end(EndReason::Stopped);
        if self.threads.is_empty() {
            return;
        }
        let parked = self.pause(Instant::now() + PARK_LIMIT);
        for thread in self.threads.drain(..) {
            if !parked && !thread.is_finished() {
                let name = thread.thread().name().unwrap_or_default();
                tracing::error!(thread = name, "a vCPU thread is held up and not waited for");
                continue;
            }
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The accesses of an exit for port I/O, of which a string instruction has many: `data` is what the exit
/// has of them.
#[expect(unsafe_code, reason = "kvm-ioctls does not tell how long an access is")]
fn accesses(fd: &mut VcpuFd, data: *mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    // SAFETY: the last exit was for port I/O, so this is what the kernel has filled in.
    let size = unsafe { fd.get_kvm_run().__bindgen_anon_1.io.size };
    // SAFETY: the bytes are in the vCPU's mapping of kvm_run, behind the structure itself; they are there
    // as long as `fd` is, which is borrowed meanwhile, and nobody else refers to them.
    unsafe { &mut *data }.chunks_exact_mut(usize::from(size.max(1)))
}

struct Worker {
    index: usize,
    fd: Arc<Mutex<VcpuFd>>,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    control: Arc<Control>,
    /// What KVM runs the vCPU in; after `fd`, so that it goes away later.
    _ram: Arc<GuestRam>,
}

impl Worker {
    fn run(self) {
        loop {
            {
                let mut shared = lock(&self.control.shared);
                loop {
                    match shared.want {
                        Want::Run if !shared.halted => {
                            shared.running += 1;
                            break;
                        }
                        Want::Stop => return,
                        Want::Run | Want::Pause => {
                            shared = self
                                .control
                                .changed
                                .wait(shared)
                                .unwrap_or_else(|poison| poison.into_inner());
                        }
                    }
                }
            }
            // A device whose code panics ends this guest, and keeps nobody waiting for its vCPU.
            let end = catch_unwind(AssertUnwindSafe(|| self.enter())).unwrap_or_else(|panic| {
                let what = panic_text(&*panic);
                Some(EndReason::Failed(format!("a device failed, which is a defect: {what}")))
            });
            if let Some(reason) = end {
                self.control.end(reason);
            }
            let mut shared = lock(&self.control.shared);
            shared.running -= 1;
            self.control.changed.notify_all();
        }
    }

    /// Runs the guest until a pause or its end is wanted.
    fn enter(&self) -> Option<EndReason> {
        let mut fd = lock(&self.fd);
        let _kicked = Kicked::new(&mut fd);
        loop {
            // Never cleared here: a kick between a load and a store would be lost.
            if self.control.leave.load(Ordering::Acquire) {
                fd.set_kvm_immediate_exit(1);
            }
            match fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    let data = ptr::from_mut(data);
                    for access in accesses(&mut fd, data) {
                        self.pio.read(u64::from(port), access);
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    // KVM has these bytes for itself to read; nobody else has them.
                    let data = ptr::from_ref(data).cast_mut();
                    for access in accesses(&mut fd, data) {
                        self.pio.write_to(u64::from(port), access);
                    }
                }
                Ok(VcpuExit::MmioRead(address, data)) => self.mmio.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => self.mmio.write_to(address, data),
                Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Intr) => {}
                Ok(VcpuExit::Shutdown) => return Some(EndReason::TripleFault(self.place(&fd))),
                Ok(VcpuExit::SystemEvent(kind, _)) => {
                    return Some(EndReason::Failed(format!("system event {kind}")));
                }
                Ok(exit) => {
                    let what = format!("{exit:?}");
                    let place = self.place(&fd);
                    return Some(EndReason::Failed(format!("{what}, {place}")));
                }
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    fd.set_kvm_immediate_exit(0);
                    if self.control.leave.load(Ordering::Acquire) {
                        return None;
                    }
                }
                Err(error) => return Some(EndReason::Failed(format!("KVM_RUN: {error}"))),
            }
        }
    }

    /// The vCPU and the registers that tell where the guest is, for the log.
    fn place(&self, fd: &VcpuFd) -> String {
        let index = self.index;
        match (fd.get_regs(), fd.get_sregs()) {
            (Ok(regs), Ok(special)) => format!(
                "vCPU {index} at {:#x}, rsp {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, \
                 efer {:#x}",
                regs.rip,
                regs.rsp,
                special.cr0,
                special.cr2,
                special.cr3,
                special.cr4,
                special.efer
            ),
            (Err(error), _) | (_, Err(error)) => format!("vCPU {index}, registers: {error}"),
        }
    }
}
