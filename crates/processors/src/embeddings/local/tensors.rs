//! Reads weights from the safetensors format: a length, a table in JSON, and numbers.

use std::collections::HashMap;

use ndarray::{Array1, Array2};
use serde::Deserialize;

/// Bytes of the table at most.
const TABLE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The weights of a file, by name.
pub(super) struct Tensors<'a> {
    table: HashMap<String, Entry>,
    numbers: &'a [u8],
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    dtype: String,
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(default)]
    data_offsets: [usize; 2],
}

impl<'a> Tensors<'a> {
    pub(super) fn read(file: &'a [u8]) -> Result<Self, String> {
        let short = || "'model.safetensors' is cut off".to_owned();
        let (length, rest) = file.split_first_chunk::<8>().ok_or_else(short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
        if length > TABLE_BYTES_MAX {
            return Err("'model.safetensors' is no file of weights".to_owned());
        }
        let (table, numbers) = rest.split_at_checked(length).ok_or_else(short)?;
        let mut table: HashMap<String, serde_json::Value> = serde_json::from_slice(table)
            .map_err(|e| format!("'model.safetensors' is no file of weights: {e}"))?;
        table.remove("__metadata__");
        let entry = |(name, value): (String, serde_json::Value)| {
            let entry = serde_json::from_value(value);
            entry
                .map(|entry| (name.clone(), entry))
                .map_err(|e| format!("weights '{name}' are not described: {e}"))
        };
        Ok(Self { table: table.into_iter().map(entry).collect::<Result<_, _>>()?, numbers })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Array1<f32>, String> {
        self.numbers(name, &[length]).map(Array1::from)
    }

    pub(super) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Array2<f32>, String> {
        let numbers = self.numbers(name, &[rows, columns])?;
        Array2::from_shape_vec((rows, columns), numbers).map_err(|e| format!("weights '{name}': {e}"))
    }

    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let entry = self.table.get(name).ok_or_else(|| format!("it has no weights '{name}'"))?;
        if entry.shape != shape {
            return Err(format!("weights '{name}' have the shape {:?}, not {shape:?}", entry.shape));
        }
        let [from, to] = entry.data_offsets;
        let bytes = self
            .numbers
            .get(from..to)
            .ok_or_else(|| format!("weights '{name}' are cut off; fetch the file again"))?;
        let numbers: Vec<f32> = match entry.dtype.as_str() {
            "F32" => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|two| half(u16::from_le_bytes(*two))).collect(),
            "BF16" => {
                let whole = |two: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*two)) << 16);
                bytes.as_chunks().0.iter().map(whole).collect()
            }
            other => {
                return Err(format!("weights '{name}' are of type {other}; F32, F16 and BF16 can be read"));
            }
        };
        if numbers.len() != shape.iter().product::<usize>() {
            return Err(format!("weights '{name}' are cut off; fetch the file again"));
        }
        Ok(numbers)
    }
}

/// A number of sixteen bits: sign, five bits of exponent, ten of fraction.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff) / 1024.0);
    sign * match exponent {
        0 => fraction * 2_f32.powi(-14),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction) * 2_f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dtype: &str, numbers: &[u8]) -> Vec<u8> {
        let table = format!(
            r#"{{"__metadata__": {{"format": "pt"}}, "a": {{"dtype": "{dtype}", "shape": [2], "data_offsets": [0, {}]}}}}"#,
            numbers.len()
        );
        let mut file = (table.len() as u64).to_le_bytes().to_vec();
        file.extend(table.as_bytes());
        file.extend(numbers);
        file
    }

    #[test]
    fn numbers_are_read_from_each_type() {
        let whole = [1.5_f32.to_le_bytes(), (-0.25_f32).to_le_bytes()].concat();
        for (dtype, numbers) in [
            ("F32", whole.as_slice()),
            ("F16", &[0x00, 0x3e, 0x00, 0xb4]),
            ("BF16", &[0xc0, 0x3f, 0x80, 0xbe]),
        ] {
            let file = file(dtype, numbers);
            let read = Tensors::read(&file).unwrap().vector("a", 2).unwrap();
            assert_eq!(read.to_vec(), [1.5, -0.25], "{dtype}");
        }
        assert_eq!([half(1), half(0x7c00), half(0x8000)], [2_f32.powi(-24), f32::INFINITY, -0.0]);
    }

    #[test]
    fn what_is_missing_cut_off_or_unknown_is_named() {
        let good = file("F32", &[0; 8]);
        let tensors = Tensors::read(&good).unwrap();
        assert!(tensors.vector("b", 2).unwrap_err().contains("'b'"));
        assert!(tensors.vector("a", 3).unwrap_err().contains("[2], not [3]"));
        assert!(
            Tensors::read(&good[..good.len() - 1]).unwrap().vector("a", 2).unwrap_err().contains("cut off")
        );
        assert!(Tensors::read(&file("F64", &[0; 16])).unwrap().vector("a", 2).unwrap_err().contains("F64"));
        for odd in [&b"short"[..], &[0xff; 40], b"\x02\0\0\0\0\0\0\0no"] {
            assert!(Tensors::read(odd).is_err());
        }
    }
}
