//! Base64 in members: checked at the door, so that no service has to answer for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ApiError;

/// A text that really holds base64, line breaks taken out.
pub(crate) fn checked(text: String) -> Result<String, ApiError> {
    let text = match text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        true => text.split_ascii_whitespace().collect(),
        false => text,
    };
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(ApiError::bad("must hold base64", e)),
    }
}

/// What a base64 text holds; `None` when it is not one.
pub(crate) fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}
