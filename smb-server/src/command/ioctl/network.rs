//! Controls without a file: the negotiation checked again, the server's interfaces
//! (MS-SMB2 3.3.5.15.11, 3.3.5.15.12).

use smb_protocol::{
    Dialect,
    fscc::fsctl::{self, ValidateNegotiate, ValidateNegotiateResponse},
    msg::ioctl::Request,
};

use super::{super::Failure, Ctx, Handled, answer};
use crate::interfaces;

/// Whether the client saw the negotiation that we saw (3.3.5.15.12); if not, someone is between.
pub fn validate(ctx: &Ctx<'_>, request: &Request<'_>, out: &mut Vec<u8>) -> Handled {
    const TAMPERED: Failure = Failure::Disconnect("the negotiation was tampered with");
    let Some(negotiated) = &ctx.ex.negotiated else { return Err(TAMPERED) };
    if negotiated.dialect == Dialect::SMB_3_1_1 {
        // Its keys are made of the negotiation, so no honest client asks.
        return Err(Failure::Disconnect("a negotiation of 3.1.1 is validated"));
    }
    if (request.max_output as usize) < ValidateNegotiateResponse::LEN {
        return Err(Failure::Disconnect("no room for what validates the negotiation"));
    }
    let claim = ValidateNegotiate::parse(request.input)?;
    let dialects: Vec<u16> = negotiated.client_dialects.iter().map(|d| d.0).collect();
    if claim.capabilities != negotiated.client_capabilities
        || claim.guid != negotiated.client_guid
        || claim.security_mode != negotiated.client_security_mode
        || claim.dialects != dialects
    {
        return Err(TAMPERED);
    }
    let mut output = Vec::new();
    ValidateNegotiateResponse {
        capabilities: negotiated.capabilities.0,
        guid: ctx.ex.server.ids.server_guid(),
        security_mode: negotiated.security_mode.0,
        dialect: negotiated.dialect.0,
    }
    .encode(&mut output);
    answer(request, &output, out)
}

/// The addresses that the client may use (3.3.5.15.11).
pub fn interfaces(ctx: &Ctx<'_>, request: &Request<'_>, out: &mut Vec<u8>) -> Handled {
    let mut output = Vec::new();
    let current = ctx.ex.server.current();
    let config = &current.config;
    let (listen, rdma_listen, told) = (&*config.listen, &*config.rdma_listen, &config.interfaces);
    let reached = interfaces::Reached { listen, rdma_listen, told };
    let list = interfaces::list(reached, ctx.ex.local, ctx.ex.carrier);
    ctx.session()?.told.note(&list);
    fsctl::encode_interfaces(&list, &mut output);
    answer(request, &output, out)
}
