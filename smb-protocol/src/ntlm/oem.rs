//! Names in the OEM character set, for a client that does not know Unicode (MS-NLMP 2.2.2.5): the
//! code page 437 of the first personal computers, whose lower half is ASCII.

/// Characters 128 to 255.
const UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Reads a name; every byte is a character.
pub(super) fn decode(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte.checked_sub(128) {
        None => Some(char::from(*byte)),
        Some(at) => UPPER.chars().nth(at.into()),
    };
    bytes.iter().filter_map(one).collect()
}

/// Writes a name; a character that the set has not is a question mark.
pub(super) fn encode(text: &str) -> Vec<u8> {
    let one = |c: char| match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => byte,
        _ => {
            let at = UPPER.chars().position(|known| known == c);
            at.and_then(|at| u8::try_from(at + 128).ok()).unwrap_or(b'?')
        }
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_character_of_its_own() {
        let all: Vec<u8> = (0..=255).collect();
        let text = decode(&all);
        assert_eq!(text.chars().count(), 256);
        assert_eq!(encode(&text), all);
        assert_eq!(decode(b"M\x81ller"), "Müller");
        assert_eq!(encode("漢a"), b"?a");
    }
}
