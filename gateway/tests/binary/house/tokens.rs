//! The source of the gateway as the compiler's lexer sees it, without comments, strings' insides, and tests.

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The tokens of a file, in order, without every item that is marked `#[cfg(test)]`. Groups stay nested.
pub(super) fn of(source: &str) -> Vec<TokenTree> {
    without_tests(source.parse().unwrap())
}

fn without_tests(stream: TokenStream) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut tokens = stream.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let is_test = is_punct(Some(&token), '#') && tokens.peek().is_some_and(is_cfg_test);
        if is_test {
            // The item ends with its braces, or with a semicolon where it has none.
            let is_end = |token: &TokenTree| is_punct(Some(token), ';') || is_group(token, Delimiter::Brace);
            let _ = tokens.find(is_end).expect("an item follows the attribute");
        } else if let TokenTree::Group(group) = token {
            let inside = without_tests(group.stream()).into_iter().collect();
            kept.push(TokenTree::Group(proc_macro2::Group::new(group.delimiter(), inside)));
        } else {
            kept.push(token);
        }
    }
    kept
}

fn is_cfg_test(token: &TokenTree) -> bool {
    is_group(token, Delimiter::Bracket) && token.to_string().replace(' ', "") == "[cfg(test)]"
}

fn is_group(token: &TokenTree, delimiter: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == delimiter)
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// Every path written with `::`, however deep, as its names; a group in braces gives one path for each of its elements.
pub(super) fn paths(tokens: &[TokenTree]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    collect(tokens, &mut found);
    found
}

fn collect(tokens: &[TokenTree], found: &mut BTreeSet<Vec<String>>) {
    let mut position = 0;
    while position < tokens.len() {
        match &tokens[position] {
            TokenTree::Ident(_) => {
                let (ends, next) = path_at(tokens, position);
                found.extend(ends.into_iter().filter(|path| path.len() > 1));
                position = next;
            }
            TokenTree::Group(group) => {
                collect(&group.stream().into_iter().collect::<Vec<_>>(), found);
                position += 1;
            }
            _ => position += 1,
        }
    }
}

/// The paths that begin with the name at `position`, and where the tokens go on after them.
fn path_at(tokens: &[TokenTree], mut position: usize) -> (Vec<Vec<String>>, usize) {
    let mut path = Vec::new();
    loop {
        match tokens.get(position) {
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(token) if is_group(token, Delimiter::Brace) && !path.is_empty() => {
                let TokenTree::Group(group) = token else { unreachable!() };
                let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                let elements = inside.split(|token| is_punct(Some(token), ','));
                let ends = elements.filter(|element| !element.is_empty()).flat_map(|e| path_at(e, 0).0);
                let whole = ends.map(|end| path.iter().cloned().chain(end).collect());
                return (whole.collect(), position + 1);
            }
            _ => return (vec![path], position + 1),
        }
        position += 1;
        if !(is_punct(tokens.get(position), ':') && is_punct(tokens.get(position + 1), ':')) {
            return (vec![path], position);
        }
        position += 2;
    }
}

/// The modules at the top of the crate that the file at `relative` (to `src`) names.
pub(super) fn imported_modules(source: &str, relative: &Path) -> BTreeSet<String> {
    let own: Vec<String> = relative
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    let absolute = |path: Vec<String>| -> Option<String> {
        let ups = path.iter().take_while(|name| *name == "super").count();
        match path[0].as_str() {
            "crate" => path.get(1).cloned(),
            "super" if ups == own.len() => path.get(ups).cloned(),
            _ => None,
        }
    };
    paths(&of(source)).into_iter().filter_map(absolute).collect()
}

#[test]
fn imports_are_found_wherever_they_stand() {
    let source = r#"
        use crate::a;
        use crate::{b::C, d::{E, f}, g};
        #[cfg(test)]
        fn only_in_tests() { crate::never::run(); }
        #[cfg(test)]
        use crate::neither;
        // crate::comment::x
        fn code() -> crate::h::I { println!("{} crate::string::x", super::super::j::K); super::own::x() }
        #[cfg(test)]
        mod tests { use crate::nor_this; }
        mod after { use crate::l::M; }
    "#;
    let found = imported_modules(source, Path::new("pool/connection.rs"));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "d", "g", "h", "j", "l"]);
}
