//! The network interface behind a tap: made, put into a bridge, set up. It goes with the tap.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Most bytes of an interface's name with its end.
const NAME: usize = libc::IFNAMSIZ;
/// `SIOCBRADDIF` of `linux/sockios.h`: puts an interface into a bridge.
const ADD_TO_BRIDGE: libc::Ioctl = 0x89a2;

/// The network interface that a tap is the other end of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// As the kernel calls it.
    pub name: String,
}

/// Makes a tap and its interface, which the kernel names by `pattern`: `%d` becomes the first number that
/// is free.
///
/// # Errors
/// What the operating system says; it takes `CAP_NET_ADMIN`.
pub fn open_tap(pattern: &str) -> io::Result<(OwnedFd, Interface)> {
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(pattern)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    call(&tap, libc::TUNSETIFF, &mut request)?;
    let bytes = request.ifr_name.map(|byte| byte as u8);
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    Ok((tap.into(), Interface { name }))
}

impl Interface {
    /// Whether the kernel knows it.
    pub fn exists(&self) -> bool {
        let index = |socket| rustix::net::netdevice::name_to_index(socket, &self.name);
        socket().is_ok_and(|socket| index(socket).is_ok())
    }

    /// Puts it into a bridge.
    ///
    /// # Errors
    /// What the operating system says: that there is no such bridge, for one.
    pub fn join(&self, bridge: &str) -> io::Result<()> {
        let index = rustix::net::netdevice::name_to_index(socket()?, &self.name)?;
        let mut request = request(bridge)?;
        request.ifr_ifru.ifru_ifindex = index.cast_signed();
        call(&socket()?, ADD_TO_BRIDGE, &mut request)
    }

    /// Lets frames through.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_up(&self) -> io::Result<()> {
        let socket = socket()?;
        let mut request = request(&self.name)?;
        call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
        add_flag(&mut request, libc::IFF_UP as libc::c_short);
        call(&socket, libc::SIOCSIFFLAGS, &mut request)
    }
}

fn socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let kind = SocketType::DGRAM;
    Ok(socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?)
}

#[expect(unsafe_code, reason = "a request about an interface is a union")]
fn request(name: &str) -> io::Result<libc::ifreq> {
    let text = CString::new(name)?;
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > NAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name of an interface is long",
        ));
    }
    // SAFETY: integers and pointers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(request)
}

#[expect(unsafe_code, reason = "a request about an interface is a union")]
fn add_flag(request: &mut libc::ifreq, flag: libc::c_short) {
    // SAFETY: the kernel has written the flags.
    unsafe { request.ifr_ifru.ifru_flags |= flag };
}

#[expect(unsafe_code, reason = "ioctls of interfaces")]
fn call(fd: &impl AsRawFd, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests that this is called with read and write one `ifreq`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), what, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
