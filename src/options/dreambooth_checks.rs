//! What is wrong with the options of a DreamBooth run by themselves, before anything is read.

use super::checks::{counted, in_range, is_folder, is_there, refuse, MAX_FACTOR, MAX_PLACES};
use super::dreambooth::{DreamBoothConfig, MAX_RESOLUTION};
use super::training::TrainingArgs;
use crate::data::photos::count_images_but;
use crate::error::Result;
use crate::sample::text_to_image::check_guidance_scale;
use std::path::Path;

impl DreamBoothConfig {
    /// Refuses options that cannot be meant, each by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        self.training.check()?;
        self.check_counts()?;
        self.check_numbers()?;
        self.unet.check()?;
        self.text_encoder.check()?;
        self.text_encoder_2.check()?;
        self.training.check_logging_dir(self.output())?;
        self.init_adapter
            .as_ref()
            .map_or(Ok(()), |adapter| TrainingArgs::check_stays("⟨init_adapter⟩", adapter, self.output()))?;
        self.check_paths()?;
        self.check_class_images()?;
        Ok(())
    }

    /// What is to be read must be there: each path is named with its flag.
    fn check_paths(&self) -> Result<()> {
        // A plan needs no photos.
        if self.instance_data_dir != Path::new("") {
            is_folder("⟨instance_data_dir⟩", &self.instance_data_dir)?;
        }
        match (self.with_prior_preservation, &self.class_data_dir) {
            (true, Some(folder)) if folder.exists() => is_folder("⟨class_data_dir⟩", folder)?,
            _ => {}
        }
        self.model.check_paths()?;
        self.init_adapter.as_deref().map_or(Ok(()), |path| is_there("⟨init_adapter⟩", path))
    }

    fn check_class_images(&self) -> Result<()> {
        if !self.with_prior_preservation {
            return Ok(());
        }
        let (Some(folder), Some(_)) = (&self.class_data_dir, &self.class_prompt) else {
            return refuse("⟨with_prior_preservation⟩ needs ⟨class_data_dir⟩ and ⟨class_prompt⟩".into());
        };
        let same = |folder: &Path| folder.canonicalize().ok() == self.instance_data_dir.canonicalize().ok();
        if folder.exists() && same(folder) {
            return refuse(format!(
                "⟨class_data_dir⟩ and ⟨instance_data_dir⟩ are both {}; images of the class would be trained on as the subject. \
                 Give the class a folder of its own",
                folder.display()
            ));
        }
        if self.num_class_images == 0 && count_images_but(folder, &self.apart_from_class())? == 0 {
            return refuse(format!(
                "⟨num_class_images⟩ is 0 and {} holds no image, but ⟨with_prior_preservation⟩ learns from class images; \
                 have some made (100 is usual), or leave ⟨with_prior_preservation⟩ out",
                folder.display()
            ));
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<()> {
        let resolution = self.resolution.unwrap_or(8);
        if resolution > MAX_RESOLUTION {
            return refuse(format!("⟨resolution⟩ is {resolution}; it can be at most {MAX_RESOLUTION}"));
        }
        if resolution == 0 || !resolution.is_multiple_of(8) {
            let near = ((resolution + 4) / 8 * 8).max(8);
            return refuse(format!("⟨resolution⟩ {resolution} is not a multiple of 8; the nearest is {near}"));
        }
        for (flag, number, least, most) in [
            ("⟨train_batch_size⟩", self.train_batch_size as u64, 1, MAX_PLACES),
            ("⟨sample_batch_size⟩", self.sample_batch_size as u64, 1, MAX_PLACES),
            ("⟨num_class_images⟩", self.num_class_images as u64, 0, MAX_PLACES),
            ("⟨num_validation_images⟩", self.num_validation_images as u64, 1, MAX_PLACES),
            ("⟨validation_steps⟩", self.validation_steps, 1, u64::MAX),
        ] {
            counted(flag, number, least, most)?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        check_guidance_scale(self.guidance_scale)?;
        for (flag, number, most) in [
            ("⟨learning_rate⟩", self.learning_rate, 1e3),
            ("⟨text_encoder_lr⟩", self.text_encoder_lr.unwrap_or_default(), 1e3),
            ("⟨text_encoder_2_lr⟩", self.text_encoder_2_lr.unwrap_or_default(), 1e3),
            ("⟨prior_loss_weight⟩", self.prior_loss_weight, MAX_FACTOR),
            ("⟨noise_offset⟩", self.noise_offset, 100.0),
            ("⟨snr_gamma⟩", self.snr_gamma.unwrap_or(1.0), MAX_FACTOR),
        ] {
            in_range(flag, number, most)?;
        }
        if self.snr_gamma == Some(0.0) {
            return refuse("⟨snr_gamma⟩ is 0, which makes every loss 0; 5 is usual".into());
        }
        Ok(())
    }

    /// Sentences about options that have no effect.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.with_prior_preservation && (self.class_data_dir.is_some() || self.class_prompt.is_some()) {
            warnings.push("class options have no effect without ⟨with_prior_preservation⟩".to_owned());
        }
        if self.with_prior_preservation && self.prior_loss_weight == 0.0 {
            warnings.push("⟨prior_loss_weight⟩ is 0: the class images cost time and teach nothing".to_owned());
        }
        if !self.train_text_encoder && self.given.names().any(|name| name.starts_with("lora_text_encoder_")) {
            warnings.push("⟨lora_text_encoder⟩ options have no effect without ⟨train_text_encoder⟩".to_owned());
        }
        for (option, rate) in [("text_encoder_lr", self.text_encoder_lr), ("text_encoder_2_lr", self.text_encoder_2_lr)]
        {
            if !self.train_text_encoder && rate.is_some() {
                warnings.push(format!("⟨{option}⟩ has no effect without ⟨train_text_encoder⟩"));
            }
        }
        if self.validation_prompt.is_none() && self.given.names().any(|name| name.contains("validation")) {
            warnings.push("sample images are drawn only with ⟨validation_prompt⟩".to_owned());
        }
        let learns_text = self.train_text_encoder && self.own_learning_rates().iter().any(|(_, rate)| *rate > 0.0);
        if self.learning_rate == 0.0 && learns_text {
            warnings.push("⟨learning_rate⟩ is 0: of the networks only text encoders learn".to_owned());
        } else if self.learning_rate == 0.0 {
            warnings.push("⟨learning_rate⟩ is 0: nothing is learned".to_owned());
        }
        warnings.extend(self.training.warnings());
        match self.accepted.report_to.as_deref() {
            None | Some("tensorboard") => {}
            Some(other) => {
                warnings.push(format!("⟨report_to⟩ {other} is not supported; TensorBoard events are written"))
            }
        }
        warnings
    }
}
