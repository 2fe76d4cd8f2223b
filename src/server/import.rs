//! Adapters from elsewhere: uploaded files are looked at before they are listed.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::ids::new_id;
use super::jobs::now;
use super::library;
use super::uploaded_file::{label, readable, receive, stem, Temporary};
use super::App;
use crate::adapters::formats::{check_family, language_adapter_at};
use crate::adapters::inspect::{inspect, Inspected};
use crate::adapters::peft_folder::{CONFIG_FILE, MODEL_FILE};
use crate::adapters::read_any;
use crate::error::{Error, Result};
use axum::extract::{Multipart, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use rusqlite::params;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of an uploaded adapter, and of what a zip of one unpacks to.
const MAX_ADAPTER: u64 = 4 << 30;
/// Files in a zip of an adapter: more is something else.
const MAX_ENTRIES: usize = 2000;
/// What PEFT's folders hold.
const FILES: [&str; 4] = [CONFIG_FILE, MODEL_FILE, "prompt_encoder.safetensors", "classes.json"];

/// What an uploaded adapter is.
struct Found {
    kind: &'static str,
    base_model: String,
    rank: Option<i64>,
}

/// `POST /api/adapters`: a zip of PEFT's folders, or a file of diffusers or kohya, in the field `file`.
pub async fn upload(State(app): State<App>, owner: Owner, mut form: Multipart) -> Answer {
    let broken = |_| Failure::bad("the upload broke off, or is not a form with a file");
    let Some(field) = form.next_field().await.map_err(broken)? else {
        return Err(Failure::field("file", "choose a file: a zip of PEFT's folder, or a .safetensors file"));
    };
    let name = label(field.file_name().unwrap_or("adapter"));
    let Some(file) = receive(&app, field, MAX_ADAPTER).await? else {
        return Err(Failure::field("file", format!("{name} is larger than {} GB", MAX_ADAPTER >> 30)));
    };
    let id = new_id()?;
    let turn = app.heavy.acquire().await.map_err(|_| Failure::conflict("the server is stopping"))?;
    let (shared, new, of, called) = (app.clone(), id.clone(), owner.owned(), name.clone());
    let taken = tokio::task::spawn_blocking(move || take(&shared, &new, &of, &called, &file));
    taken.await.map_err(|_| Failure::bad("the adapter could not be read"))??;
    drop(turn);
    app.events.send(owner.name(), &json!({ "kind": "adapters" }));
    let shown = library::shown_one(&app, &id, owner.name()).await?;
    Ok((StatusCode::CREATED, shown).into_response())
}

fn take(app: &App, id: &str, owner: &str, name: &str, file: &Temporary) -> Answer<()> {
    let folder = app.data.adapters().join(id);
    let found = unpacked(&file.0, name, &folder).and_then(|()| looked_at(&folder));
    let found = found.map_err(|failure| {
        drop(app.data.remove(&folder));
        // The client knows the file by its own name.
        let sentence = app.data.without_root(&failure.sentence).replace(&format!("adapters/{id}"), name);
        Failure { sentence, field: Some("file".to_owned()), ..failure }
    })?;
    let (id, owner, name) = (id.to_owned(), owner.to_owned(), stem(name).to_owned());
    app.store.wait(move |db| {
        db.execute(
            "INSERT INTO adapters (id, owner, name, kind, base_model, trigger_text, rank, created, folder)
             VALUES (?1, ?2, ?3, ?4, ?5, '', ?6, ?7, ?8)",
            params![id, owner, name, found.kind, found.base_model, found.rank, now(), format!("adapters/{id}")],
        )
        .map(drop)
    })?;
    Ok(())
}

/// Puts the adapter in `file` into `folder`: of a zip the files that PEFT's folders have, under names of ours.
fn unpacked(file: &Path, name: &str, folder: &Path) -> Answer<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let mut begin = [0; 4];
    let mut opened = File::open(file).map_err(|error| Error::io("read", file, error))?;
    let is_zip = opened.read_exact(&mut begin).is_ok() && &begin == b"PK\x03\x04";
    if !is_zip {
        let kept = folder.join(format!("{}.safetensors", readable(name)));
        std::fs::copy(file, &kept).map_err(|error| Error::io("write", &kept, error))?;
        return Ok(());
    }
    let wrong = |sentence: &str| Failure::field("file", format!("{name} {sentence}"));
    let mut archive = zip::ZipArchive::new(opened).map_err(|_| wrong("is a damaged zip file"))?;
    if archive.len() > MAX_ENTRIES {
        return Err(wrong("holds too many files for an adapter"));
    }
    let mut left = MAX_ADAPTER;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|_| wrong("is a damaged zip file, or locked with a password"))?;
        let inside = entry.name().map(std::borrow::Cow::into_owned).unwrap_or_default();
        let mut parts = inside.rsplit(['/', '\\']);
        let Some(wanted) = parts.next().and_then(|last| FILES.into_iter().find(|name| *name == last)) else { continue };
        let part = parts.next().and_then(|folder| ["unet", "text_encoder"].into_iter().find(|part| *part == folder));
        let place = part.map_or_else(|| folder.to_owned(), |part| folder.join(part));
        std::fs::create_dir_all(&place).map_err(|error| Error::io("create", &place, error))?;
        let path = place.join(wanted);
        if path.exists() {
            return Err(wrong(&format!("holds two files {wanted}; give one adapter")));
        }
        let mut out = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
        let copied = std::io::copy(&mut entry.take(left + 1), &mut out).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => Failure::from(Error::io("write", &path, error)),
            _ => wrong("is a damaged zip file"),
        })?;
        left =
            left.checked_sub(copied).ok_or_else(|| wrong(&format!("unpacks to more than {} GB", MAX_ADAPTER >> 30)))?;
    }
    match left == MAX_ADAPTER {
        true => Err(wrong("holds no adapter: a zip of PEFT's folder has adapter_config.json in it")),
        false => Ok(()),
    }
}

/// What the adapter in `folder` is; one that cannot be used is refused.
fn looked_at(folder: &Path) -> Answer<Found> {
    let inspected = looked_at_now(folder)?;
    Ok(match inspected {
        Inspected::Prompt(prompt) => {
            Found { kind: "language", base_model: prompt.base_model.unwrap_or_default(), rank: None }
        }
        Inspected::Adapters(summary) => {
            let is_language = summary.parts.contains_key("language_model");
            let told = summary.parts.values().find_map(|part| part.base_model.clone());
            Found {
                kind: if is_language { "language" } else { "stable_diffusion" },
                base_model: told.or(summary.family).unwrap_or_default(),
                rank: summary.parts.values().flat_map(|part| part.ranks.iter().copied()).max(),
            }
        }
    })
}

fn looked_at_now(folder: &Path) -> Result<Inspected> {
    let inspected = inspect(folder)?;
    if language_adapter_at(folder)?.is_none() {
        check_family(&read_any(folder, None)?, folder)?;
    }
    Ok(inspected)
}
