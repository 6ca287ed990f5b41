//! What is no command: pings, texts, logouts, messages that nobody asked for
//! (RFC 7143 11.9 to 11.11, 11.14, 11.15, 11.18, 11.19).

use bytes::Bytes;

use super::*;
use crate::{
    negotiate::{Negotiation, Phase},
    pdu::{AsyncMessage, LogoutRequest, LogoutResponse, NopOut, TextRequest, TextResponse},
    text::{self, Pieces},
};

impl Session {
    pub(super) fn nop_out(&mut self, link: u32, nop: &NopOut, frame: &Frame) {
        // An answer to a ping: that it came was noted.
        if nop.itt == NO_TAG {
            return;
        }
        let Some(it) = self.links.get(&link) else { return };
        let length = frame.data.len().min(it.parameters.initiator_max_recv as usize);
        let data = Bytes::copy_from_slice(&frame.data[..length]);
        let pdu = NopIn { sn: Numbers::default(), lun: [0; 8], itt: nop.itt, ttt: NO_TAG };
        self.send(link, Pdu::NopIn(pdu), data, None);
    }

    pub(super) fn text(&mut self, link: u32, request: &TextRequest, frame: &Frame) {
        let Some(it) = self.links.get_mut(&link) else { return };
        let limit = it.parameters.initiator_max_recv as usize;
        let mut exchange = match it.text.take() {
            _ if request.ttt == NO_TAG => TextExchange::new(request.itt),
            Some(it) if it.itt == request.itt && it.ttt == request.ttt => it,
            _ => return self.reject(link, reason::LONG_OPERATION, frame),
        };
        match exchange.incoming.add(&frame.data, request.more) {
            Ok(Some(pairs)) if !pairs.is_empty() => match self.answer_text(link, &pairs) {
                Some(answer) => exchange.outgoing = Pieces::new(answer),
                None => return self.reject(link, reason::PROTOCOL, frame),
            },
            Ok(_) => {}
            Err(_) => return self.reject(link, reason::PROTOCOL, frame),
        }
        let (piece, more) = exchange.outgoing.next(limit);
        let last = request.last && !request.more && !more;
        let ttt = if last { NO_TAG } else { self.fresh_ttt() };
        let response =
            TextResponse { sn: Numbers::default(), last, more, lun: [0; 8], itt: request.itt, ttt };
        self.send(link, Pdu::TextResponse(response), piece.into(), None);
        if !last && let Some(it) = self.links.get_mut(&link) {
            exchange.ttt = ttt;
            it.text = Some(exchange);
        }
    }

    fn answer_text(&mut self, link: u32, pairs: &[Pair]) -> Option<Vec<u8>> {
        let own = self.setup.target.as_deref();
        let (asked, keys): (Vec<Pair>, Vec<Pair>) =
            pairs.iter().cloned().partition(|(key, _)| key == "SendTargets");
        let mut answers = Vec::new();
        for (_, which) in &asked {
            let which = match which.as_str() {
                // Only discovery tells of others (RFC 7143 appendix C).
                "All" if own.is_some() => {
                    answers.push(("SendTargets".to_owned(), "Reject".to_owned()));
                    continue;
                }
                "All" => SendTargets::All,
                name => SendTargets::One(name),
            };
            answers.extend(self.setup.announce.targets(&self.setup.initiator, own, which));
        }
        let it = self.links.get_mut(&link)?;
        let mut negotiation = Negotiation::new(self.setup.wishes.clone(), Phase::Full);
        negotiation.connection = it.parameters;
        answers.extend(negotiation.answer(&keys).ok()?);
        it.parameters.initiator_max_recv = negotiation.connection.initiator_max_recv;
        Some(text::write(answers.iter().map(|(key, value)| (key.as_str(), value.as_str()))))
    }

    pub(super) fn logout(&mut self, link: u32, request: &LogoutRequest) {
        let parameters = &self.setup.parameters;
        let times = (parameters.time2wait, parameters.time2retain);
        let named = |it: &Link| it.cid == request.cid && !it.logged_out;
        let up = self.links.iter().find(|(_, it)| named(it) && it.is_up());
        let any = up.or_else(|| self.links.iter().find(|(_, it)| named(it)));
        let response = match (request.reason, any.map(|(key, _)| *key)) {
            (0, _) => 0,
            (1, Some(target)) => {
                self.log_out(target, false);
                self.forget_lost(target);
                0
            }
            (2, Some(target)) if self.level() == 2 => {
                self.log_out(target, true);
                0
            }
            // An older connection of that number was logged out when this one took its place.
            (2, None)
                if self.level() == 2 && self.links.values().any(|it| it.cid == request.cid) =>
            {
                0
            }
            (2, _) if self.level() < 2 => 2,
            (1 | 2, None) => 1,
            _ => 3,
        };
        // The answer goes where the question came from, even if that connection is the one.
        let answer = LogoutResponse { sn: Numbers::default(), response, itt: request.itt, times };
        self.send(link, Pdu::LogoutResponse(answer), Bytes::new(), None);
        if let Some(it) = self.links.get_mut(&link)
            && it.logged_out
        {
            it.state = State::Closing(Close::AfterOutput);
        }
        if request.reason == 0 {
            self.end("the initiator logged out");
        }
    }

    /// A connection that was lost before and is logged out now is not waited for.
    fn forget_lost(&mut self, link: u32) {
        if self.links.get(&link).is_some_and(|it| matches!(it.state, State::Lost(_))) {
            self.links.remove(&link);
        }
    }

    pub(super) fn message(&mut self, link: u32, lun: [u8; 8], event: u8, parameters: [u16; 3]) {
        let pdu = AsyncMessage { sn: Numbers::default(), lun, event, code: 0, parameters };
        self.send(link, Pdu::AsyncMessage(pdu), Bytes::new(), None);
    }

    /// Asks the initiator to log out within `seconds` (AsyncEvent 1); what is connected then is
    /// dropped.
    pub fn ask_to_leave(&mut self, seconds: u16, now: u64) {
        for link in self.up() {
            self.message(link, [0; 8], 1, [0, 0, seconds]);
            if let Some(it) = self.links.get_mut(&link) {
                it.leave_by = Some(now + u64::from(seconds) * 1000);
            }
        }
    }

    /// Asks the initiator to negotiate anew by a text within `seconds` (AsyncEvent 4).
    pub fn ask_to_negotiate(&mut self, seconds: u16) {
        for link in self.up() {
            self.message(link, [0; 8], 4, [0, 0, seconds]);
        }
    }

    /// Says that all connections are dropped (AsyncEvent 3), and ends the session.
    pub fn drop_all(&mut self, why: &'static str) {
        let (wait, retain) = (self.setup.parameters.time2wait, self.setup.parameters.time2retain);
        for link in self.up() {
            self.message(link, [0; 8], 3, [0, wait, retain]);
        }
        self.end(why);
    }

    /// Says that a connection is dropped (AsyncEvent 2).
    pub(super) fn tell_dropped(&mut self, cid: u16) {
        let (wait, retain) = (self.setup.parameters.time2wait, self.setup.parameters.time2retain);
        for link in self.up() {
            self.message(link, [0; 8], 2, [cid, wait, retain]);
        }
    }

    fn up(&self) -> Vec<u32> {
        self.links.iter().filter(|(_, it)| it.is_up()).map(|(key, _)| *key).collect()
    }
}
