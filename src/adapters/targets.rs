//! Which sites an adapter's configuration names, by PEFT's rules (`BaseTuner._check_target_module_exists`).

use super::config::{LoraConfig, TargetModules};
use super::site::{Site, Sites};
use crate::error::{Error, Result};
use crate::weights::Op;
use std::rc::Rc;

/// The sites that `config` targets, in the order of their paths. None is an error that names near paths.
pub fn matching_sites(sites: &Sites, config: &LoraConfig) -> Result<Vec<Rc<Site>>> {
    let rules = TargetRules::new(config)?;
    let all = sites.all();
    let left_out = |site: &Site| rules.are_all_linear() && site.traits().output;
    let matching: Vec<Rc<Site>> =
        all.iter().filter(|site| rules.contain(site.path(), site.op()) && !left_out(site)).cloned().collect();
    match matching.is_empty() {
        false => Ok(matching),
        true if all.iter().any(|site| rules.wanted.matches(site.path(), site.op())) => Err(Error::invalid(
            "all modules that match the targets are excluded, by exclude_modules or by layers_to_transform",
        )),
        true => Err(nothing_matches(rules.targets, &all)),
    }
}

/// Which paths a configuration names.
pub struct TargetRules<'a> {
    targets: &'a TargetModules,
    wanted: Matcher<'a>,
    excluded: Option<Matcher<'a>>,
    layers: LayerFilter<'a>,
}

impl<'a> TargetRules<'a> {
    /// The rules of `config`.
    pub fn new(config: &'a LoraConfig) -> Result<Self> {
        let targets = config.target_modules.as_ref().ok_or_else(|| Error::invalid("no target modules are given"))?;
        Ok(Self {
            targets,
            wanted: Matcher::new(targets)?,
            excluded: config.exclude_modules.as_ref().map(Matcher::new).transpose()?,
            layers: LayerFilter::new(config)?,
        })
    }

    /// Whether they are `all-linear`, which leaves out what makes logits.
    pub fn are_all_linear(&self) -> bool {
        matches!(self.wanted, Matcher::AllLinear)
    }

    /// Whether the projection `op` at `path` would get an adapter if it were not excluded.
    pub fn exclude(&self, path: &str, op: Op) -> bool {
        self.excluded.as_ref().is_some_and(|excluded| excluded.matches(path, op)) && self.wanted.matches(path, op)
    }

    /// Whether the projection `op` at `path` gets an adapter.
    pub fn contain(&self, path: &str, op: Op) -> bool {
        !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(path, op))
            && self.wanted.matches(path, op)
            && self.layers.lets_pass(path)
    }
}

enum Matcher<'a> {
    AllLinear,
    Names(&'a [String]),
    Pattern(regex::Regex),
}

impl<'a> Matcher<'a> {
    fn new(targets: &'a TargetModules) -> Result<Self> {
        Ok(match targets {
            TargetModules::Names(names) => Self::Names(names),
            TargetModules::Pattern(pattern) if pattern == "all-linear" => Self::AllLinear,
            TargetModules::Pattern(pattern) => {
                Self::Pattern(regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|_| {
                    Error::invalid(format!("the target pattern `{pattern}` is not a regular expression"))
                })?)
            }
        })
    }

    fn matches(&self, path: &str, op: Op) -> bool {
        match self {
            Self::AllLinear => op == Op::Linear,
            Self::Names(names) => names.iter().any(|name| ends_with_name(path, name)),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// Whether `path` is `name` or ends with `.name`.
fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// PEFT's `layers_to_transform`: only layers of these numbers, counted in lists of the given names.
struct LayerFilter<'a> {
    numbers: Option<&'a [i64]>,
    patterns: Vec<regex::Regex>,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self> {
        let names = config.layers_pattern.as_ref().map(|names| names.as_slice()).unwrap_or_default();
        let expressions: Vec<String> = match names {
            [] => vec![r".*\.[^.]*\.(\d+)\.".to_owned()],
            names => names.iter().map(|name| format!(r".*\.{name}\.(\d+)\.")).collect(),
        };
        let patterns = expressions
            .iter()
            .map(|text| regex::Regex::new(&format!("^{text}")))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::invalid("layers_pattern is not a regular expression"))?;
        Ok(Self { numbers: config.layers_to_transform.as_ref().map(|numbers| numbers.as_slice()), patterns })
    }

    fn lets_pass(&self, path: &str) -> bool {
        let Some(numbers) = self.numbers else { return true };
        let number = self
            .patterns
            .iter()
            .find_map(|pattern| pattern.captures(path))
            .and_then(|captures| captures[1].parse::<i64>().ok());
        number.is_some_and(|number| numbers.contains(&number))
    }
}

fn nothing_matches(targets: &TargetModules, sites: &[Rc<Site>]) -> Error {
    let asked: Vec<&str> = match targets {
        TargetModules::Pattern(pattern) => vec![pattern],
        TargetModules::Names(names) => names.iter().map(String::as_str).collect(),
    };
    let mut names: Vec<&str> = sites.iter().map(|site| short_name(site.path())).collect();
    names.sort_unstable();
    names.dedup();
    let mut near: Vec<&str> =
        asked.iter().filter_map(|&asked| names.iter().min_by_key(|name| distance(asked, name)).copied()).collect();
    near.dedup();
    Error::NoTarget(format!(
        "no module matches the targets {}; nearest: {} (the model has {})",
        asked.join(","),
        near.join(", "),
        names.join(", ")
    ))
}

/// The last part of a path that is a name; `to_out.0` for `….attn1.to_out.0`.
pub fn short_name(path: &str) -> &str {
    let last = path.rfind('.').map_or(0, |dot| dot + 1);
    if last > 0 && path[last..].bytes().all(|b| b.is_ascii_digit()) {
        return path[..last - 1].rfind('.').map_or(path, |dot| &path[dot + 1..]);
    }
    &path[last..]
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::BaseWeight;
    use tch::{Device, Kind, Tensor};

    fn sites(paths: &[&str]) -> Rc<Sites> {
        let sites = Sites::new();
        for path in paths {
            let weight = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
            sites.register(path, Op::Linear, BaseWeight::Dense(weight), None);
        }
        sites
    }

    fn matched(paths: &[&str], config: &LoraConfig) -> Vec<String> {
        matching_sites(&sites(paths), config).unwrap().iter().map(|site| site.path().to_owned()).collect()
    }

    #[test]
    fn a_name_matches_whole_parts_of_a_path() {
        let config =
            LoraConfig { target_modules: Some(TargetModules::from_flag("to_q,to_out.0")), ..Default::default() };
        assert_eq!(matched(&["a.to_q", "a.add_to_q", "b.to_out.0", "to_q"], &config), ["a.to_q", "b.to_out.0", "to_q"]);
    }

    #[test]
    fn a_pattern_must_match_the_whole_path_and_exclusions_win() {
        let config = LoraConfig {
            target_modules: Some(TargetModules::from_flag(r".*\.(q|v)")),
            exclude_modules: Some(TargetModules::Names(vec!["b.v".into()])),
            ..Default::default()
        };
        assert_eq!(matched(&["a.q", "a.q.x", "b.v", "c.v"], &config), ["a.q", "c.v"]);
    }

    #[test]
    fn layer_numbers_choose_layers() {
        let config = LoraConfig {
            target_modules: Some(TargetModules::from_flag("q")),
            layers_to_transform: Some(super::super::config::OneOrMany::One(1)),
            ..Default::default()
        };
        assert_eq!(matched(&["m.layers.0.q", "m.layers.1.q", "m.layers.11.q"], &config), ["m.layers.1.q"]);
    }

    #[test]
    fn targets_that_match_nothing_name_the_nearest() {
        let config = LoraConfig { target_modules: Some(TargetModules::from_flag("to_qq")), ..Default::default() };
        let message = matching_sites(&sites(&["a.to_q", "a.proj_in"]), &config).err().unwrap().to_string();
        assert!(message.contains("nearest: to_q"), "{message}");
    }
}
