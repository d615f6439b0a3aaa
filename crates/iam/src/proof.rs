//! How the holder of the admin key and the service that knows it show each other that they do, without sending it.
//!
//! The command that finds a key in a data folder does not know whether what answers at an address is the server of that
//! folder: another user of the machine may have taken its port. So before it sends the key, both sides prove that they have
//! it: each computes a code over a fresh nonce and the address of the connection. The address keeps a third party from
//! passing the question on to the real server, which listens elsewhere. The holder proves first, so that those without
//! the key cannot collect codes to guess it from.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Characters of a nonce at least.
pub const NONCE_CHARS_MIN: usize = 32;
/// Characters of a nonce at most.
pub const NONCE_CHARS_MAX: usize = 128;

/// Which side proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever wants to send the key.
    Holder,
    /// The service that knows it.
    Service,
}

/// What is proved: that the key is known, now (`nonce`) and on this connection (`address`, of its server end).
#[derive(Debug, Clone, Copy)]
pub struct Challenge<'a> {
    /// Chosen by the holder, at random.
    pub nonce: &'a str,
    /// IP address and port of the server's end of the connection.
    pub address: &'a str,
}

impl Challenge<'_> {
    /// The code that `side` shows, by the key itself.
    #[must_use]
    pub fn prove(&self, side: Side, key: &str) -> String {
        self.prove_by_digest(side, &crate::key::digest(key))
    }

    /// Whether a code is the one that `side` shows. Takes the same time wherever it differs.
    #[must_use]
    pub fn is_proved(&self, side: Side, key: &str, code: &str) -> bool {
        self.is_proved_by_digest(side, &crate::key::digest(key), code)
    }

    pub(crate) fn prove_by_digest(&self, side: Side, digest: &str) -> String {
        self.mac(side, digest).finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn is_proved_by_digest(&self, side: Side, digest: &str, code: &str) -> bool {
        let code = (code.len() == 64).then(|| {
            let bytes = (0..64).step_by(2).map(|at| u8::from_str_radix(code.get(at..at + 2)?, 16).ok());
            bytes.collect::<Option<Vec<u8>>>()
        });
        code.flatten().is_some_and(|code| self.mac(side, digest).verify_slice(&code).is_ok())
    }

    /// Whether it can be answered: a nonce too short could come again.
    pub(crate) fn is_sound(&self) -> bool {
        (NONCE_CHARS_MIN..=NONCE_CHARS_MAX).contains(&self.nonce.len()) && !self.address.is_empty()
    }

    fn mac(&self, side: Side, digest: &str) -> Hmac<Sha256> {
        let side = match side {
            Side::Holder => "holder",
            Side::Service => "service",
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(digest.as_bytes()).expect("any length will do");
        for part in ["sluice-admin-key-1", side, self.nonce, self.address] {
            // With its length before it, no part can run into the next.
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_holds_for_its_key_side_nonce_and_address_alone() {
        let (key, nonce) = ("tg_0123456789abcdef", "n".repeat(NONCE_CHARS_MIN));
        let challenge = Challenge { nonce: &nonce, address: "127.0.0.1:8888" };
        let code = challenge.prove(Side::Service, key);
        assert!(challenge.is_proved(Side::Service, key, &code));
        assert!(!challenge.is_proved(Side::Holder, key, &code));
        assert!(!challenge.is_proved(Side::Service, "tg_0123456789abcdeF", &code));
        assert!(!Challenge { address: "127.0.0.1:8889", ..challenge }.is_proved(Side::Service, key, &code));
        let other = "m".repeat(NONCE_CHARS_MIN);
        assert!(!Challenge { nonce: &other, ..challenge }.is_proved(Side::Service, key, &code));
        for wrong in
            ["", "0", &code[1..], &format!("{code}0"), &"é".repeat(32), &"0".repeat(64), &"+1".repeat(32)]
        {
            assert!(!challenge.is_proved(Side::Service, key, wrong), "{wrong}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let prove = |nonce, address| Challenge { nonce, address }.prove(Side::Holder, "k");
        assert_ne!(prove("ab", "c"), prove("a", "bc"));
    }
}
