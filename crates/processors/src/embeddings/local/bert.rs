//! The forward pass of a BERT encoder for one text, without dropout, masks and heads, since none of them is needed to embed.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, Axis, Slice, concatenate};
use serde::Deserialize;

use super::tensors::Tensors;

/// What `config.json` says of a model's form.
#[derive(Debug, Deserialize)]
pub(super) struct Shape {
    #[serde(default)]
    model_type: Option<String>,
    pub(super) vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu_name")]
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

const fn two() -> usize {
    2
}

const fn epsilon() -> f32 {
    1e-12
}

fn gelu_name() -> String {
    "gelu".to_owned()
}

impl Shape {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let shape: Self = serde_json::from_str(text).map_err(|e| format!("'config.json': {e}"))?;
        let kind = shape.model_type.as_deref().unwrap_or("bert");
        if kind != "bert" {
            return Err(format!("it is of type '{kind}'; models of type 'bert' can be run"));
        }
        if shape.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return Err("its positions are not absolute".to_owned());
        }
        if shape.num_attention_heads == 0
            || shape.hidden_size == 0
            || !shape.hidden_size.is_multiple_of(shape.num_attention_heads)
        {
            return Err("its heads do not divide its width".to_owned());
        }
        if shape.max_position_embeddings < 2 {
            return Err("it has no room for a text".to_owned());
        }
        Ok(shape)
    }
}

/// A layer that weighs and adds: the weights as they multiply from the right, and what is added.
struct Linear {
    weights: Array2<f32>,
    bias: Array1<f32>,
}

struct Norm {
    gain: Array1<f32>,
    bias: Array1<f32>,
    epsilon: f32,
}

struct Layer {
    /// Queries, keys and values side by side.
    attend: Linear,
    attended: Linear,
    attended_norm: Norm,
    widen: Linear,
    narrow: Linear,
    norm: Norm,
}

/// A model's weights.
pub(super) struct Bert {
    words: Array2<f32>,
    /// With the first type's row added, since a text alone is of that type.
    positions: Array2<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    activation: fn(f32) -> f32,
}

/// Weights under a model's common prefix.
struct Under<'a> {
    tensors: &'a Tensors<'a>,
    prefix: &'static str,
    epsilon: f32,
}

impl Under<'_> {
    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, String> {
        let name = format!("{}{name}", self.prefix);
        let weights = self.tensors.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias = self.tensors.vector(&format!("{name}.bias"), outputs)?;
        // Laid out as it is read, which makes a third of the work of multiplying.
        Ok(Linear { weights: weights.t().as_standard_layout().into_owned(), bias })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, String> {
        let name = format!("{}{name}", self.prefix);
        // Models of the first years call them so.
        let (gain, bias) =
            if self.tensors.has(&format!("{name}.gamma")) { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            gain: self.tensors.vector(&format!("{name}.{gain}"), width)?,
            bias: self.tensors.vector(&format!("{name}.{bias}"), width)?,
            epsilon: self.epsilon,
        })
    }

    fn layer(&self, number: usize, shape: &Shape) -> Result<Layer, String> {
        let (width, inner) = (shape.hidden_size, shape.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{number}.{part}");
        let [query, key, value] = ["query", "key", "value"]
            .map(|part| self.linear(&name(&format!("attention.self.{part}")), width, width));
        let (query, key, value) = (query?, key?, value?);
        let side_by_side = "matrices of one height";
        let weights = concatenate(Axis(1), &[query.weights.view(), key.weights.view(), value.weights.view()]);
        let bias = concatenate(Axis(0), &[query.bias.view(), key.bias.view(), value.bias.view()]);
        Ok(Layer {
            attend: Linear { weights: weights.expect(side_by_side), bias: bias.expect(side_by_side) },
            attended: self.linear(&name("attention.output.dense"), width, width)?,
            attended_norm: self.norm(&name("attention.output.LayerNorm"), width)?,
            widen: self.linear(&name("intermediate.dense"), width, inner)?,
            narrow: self.linear(&name("output.dense"), inner, width)?,
            norm: self.norm(&name("output.LayerNorm"), width)?,
        })
    }
}

impl Bert {
    pub(super) fn new(shape: &Shape, tensors: &Tensors<'_>) -> Result<Self, String> {
        let prefix = if tensors.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let under = Under { tensors, prefix, epsilon: shape.layer_norm_eps };
        let width = shape.hidden_size;
        let rows = |name: &str, rows: usize| {
            tensors.matrix(&format!("{prefix}embeddings.{name}_embeddings.weight"), rows, width)
        };
        let types = rows("token_type", shape.type_vocab_size)?;
        let first_type = types.rows().into_iter().next().ok_or("it has no token types")?;
        let activation: fn(f32) -> f32 = match shape.hidden_act.as_str() {
            "gelu" => gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => gelu_by_tanh,
            "relu" => |x| x.max(0.0),
            other => return Err(format!("its activation '{other}' is not known")),
        };
        Ok(Self {
            words: rows("word", shape.vocab_size)?,
            positions: rows("position", shape.max_position_embeddings)? + first_type,
            norm: under.norm("embeddings.LayerNorm", width)?,
            layers: (0..shape.num_hidden_layers)
                .map(|number| under.layer(number, shape))
                .collect::<Result<_, _>>()?,
            heads: shape.num_attention_heads,
            activation,
        })
    }

    /// One row per token. The tokens are words of the model, and not more than it has positions.
    pub(super) fn forward(&self, tokens: &[usize]) -> Array2<f32> {
        let mut hidden = self.words.select(Axis(0), tokens)
            + self.positions.slice_axis(Axis(0), Slice::from(..tokens.len()));
        self.norm.apply(&mut hidden);
        for layer in &self.layers {
            let mixed = self.attend(layer, &hidden);
            hidden += &layer.attended.apply(&mixed);
            layer.attended_norm.apply(&mut hidden);
            let mut wide = layer.widen.apply(&hidden);
            wide.mapv_inplace(self.activation);
            hidden += &layer.narrow.apply(&wide);
            layer.norm.apply(&mut hidden);
        }
        hidden
    }

    /// Every token's mix of all tokens' values, head by head.
    fn attend(&self, layer: &Layer, hidden: &Array2<f32>) -> Array2<f32> {
        let asked = layer.attend.apply(hidden);
        let (tokens, width) = hidden.dim();
        let head_width = width / self.heads;
        let scale = 1.0 / (head_width as f32).sqrt();
        let mut mixed = Array2::zeros((tokens, width));
        let mut scores = Array2::zeros((tokens, tokens));
        for head in 0..self.heads {
            let part = |block: usize| {
                let from = block * width + head * head_width;
                asked.slice_axis(Axis(1), Slice::from(from..from + head_width))
            };
            let (queries, keys, values) = (part(0), part(1), part(2));
            general_mat_mul(scale, &queries, &keys.t(), 0.0, &mut scores);
            scores.rows_mut().into_iter().for_each(softmax);
            let from = head * head_width;
            let mut mixed = mixed.slice_axis_mut(Axis(1), Slice::from(from..from + head_width));
            general_mat_mul(1.0, &scores, &values, 0.0, &mut mixed);
        }
        mixed
    }
}

impl Linear {
    fn apply(&self, inputs: &Array2<f32>) -> Array2<f32> {
        let mut outputs = Array2::zeros((inputs.nrows(), self.bias.len()));
        outputs += &self.bias;
        general_mat_mul(1.0, inputs, &self.weights, 1.0, &mut outputs);
        outputs
    }
}

impl Norm {
    fn apply(&self, rows: &mut Array2<f32>) {
        for mut row in rows.rows_mut() {
            let width = row.len() as f32;
            let mean = row.sum() / width;
            let spread = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width;
            let scale = 1.0 / (spread + self.epsilon).sqrt();
            for ((x, gain), bias) in row.iter_mut().zip(&self.gain).zip(&self.bias) {
                *x = (*x - mean) * scale * gain + bias;
            }
        }
    }
}

fn softmax(mut row: ndarray::ArrayViewMut1<'_, f32>) {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.mapv_inplace(|x| (x - highest).exp());
    let sum = row.sum();
    row /= sum;
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_by_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// The error function to seven digits (Abramowitz and Stegun, 7.1.26).
fn erf(x: f32) -> f32 {
    const FACTORS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_72, 0.254_829_6];
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let sum = FACTORS.iter().fold(0.0, |sum, factor| sum * t + factor);
    (1.0 - sum * t * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_and_its_kin_have_their_known_values() {
        for (x, expected) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3), (9.0, 1.0)]
        {
            assert!((erf(x) - expected).abs() < 2e-6, "{x}: {}", erf(x));
        }
        assert!((gelu(1.0) - 0.841_344_7).abs() < 1e-5 && (gelu_by_tanh(1.0) - 0.841_192).abs() < 1e-5);
    }

    #[test]
    fn a_norm_and_a_softmax_give_what_they_promise() {
        let norm = Norm { gain: Array1::ones(4), bias: Array1::zeros(4), epsilon: 1e-12 };
        let mut rows = Array2::from_shape_vec((1, 4), vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        norm.apply(&mut rows);
        assert!(rows.sum().abs() < 1e-5 && (rows.mapv(|x| x * x).sum() - 4.0).abs() < 1e-4, "{rows}");
        let mut row = Array1::from(vec![1000.0, 1000.0, 0.0]);
        softmax(row.view_mut());
        assert_eq!(row.to_vec(), [0.5, 0.5, 0.0]);
    }

    #[test]
    fn models_that_cannot_be_run_are_named() {
        let shape = |more: &str| {
            let text = format!(
                r#"{{"vocab_size": 9, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "max_position_embeddings": 8{more}}}"#
            );
            Shape::read(&text).map(|_| ())
        };
        assert_eq!(shape(""), Ok(()));
        assert!(shape(r#", "model_type": "xlm-roberta""#).unwrap_err().contains("xlm-roberta"));
        assert!(shape(r#", "position_embedding_type": "relative_key""#).is_err());
        assert!(Shape::read("{}").unwrap_err().contains("config.json"));
    }
}
