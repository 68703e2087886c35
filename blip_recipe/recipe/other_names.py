"""The names that other tools and papers give to keys, for the hint about an unknown key."""

from __future__ import annotations

from collections import defaultdict

NAMES = {
    # Model
    "model_name_or_path": "model model_name model_id model_path base_model pretrained pretrained_model name_or_path",
    "model_revision": "revision",
    "image_size": "resolution img_size image_res input_size",
    "freeze_vision": "freeze_vit freeze_encoder freeze_image_encoder freeze_vision_encoder freeze_vision_model",
    "attention_implementation": "attn_implementation attention",
    "use_peft": "peft lora use_lora adapter",
    "lora_r": "r rank lora_rank lora_dim",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules lora_target lora_targets lora_modules lora_layers",
    "load_in_8bit": "load_8bit 8bit int8 quantization",
    "load_in_4bit": "load_4bit 4bit nf4 qlora quantization",
    "merge_adapter": "merge merge_and_unload merge_lora",
    # Data
    "dataset_name": "dataset data data_dir data_path dataset_path train_data train_data_dir train_dir train_dataset "
    "train_file annotation_file annotations captions_file",
    "dataset_config_name": "subset dataset_config config_name",
    "dataset_revision": "revision",
    "train_split": "split dataset_split train_set",
    "eval_split": "split dataset_split val_split valid_split validation_split eval_set eval_dataset validation_file",
    "test_split": "split test_set test_dataset test_file",
    "image_column": "image image_key img_column",
    "caption_column": "caption captions text texts caption_key text_key text_column captions_column",
    "question_column": "question",
    "answer_column": "answer answers",
    "image_id_column": "id_column image_id",
    "image_root": "image_dir images_dir image_folder image_path img_dir images",
    "shuffle_buffer_size": "shuffle_buffer buffer_size",
    "max_train_samples": "max_samples num_samples limit",
    "max_eval_samples": "max_samples limit",
    # Texts and scores
    "prompt": "prefix",
    "max_caption_length": "max_length max_len max_text_length max_seq_length max_caption_len",
    "generation_max_length": "max_new_tokens max_length max_len max_tokens",
    "generation_min_length": "min_new_tokens min_length min_len min_tokens",
    "generation_num_beams": "num_beams n_beams beams beam_size beam",
    "metrics": "metric",
    "kl_coef": "kl kl_weight beta",
    "num_generations": "num_return_sequences n_samples num_captions",
    # Training
    "output_dir": "output out out_dir output_path save_dir checkpoint_dir",
    "num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs max_epoch",
    "max_steps": "steps num_steps max_train_steps num_train_steps num_training_steps max_iters",
    "per_device_train_batch_size": "batch_size batch train_batch_size per_gpu_train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size val_batch_size test_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "accumulate_grad_batches accumulation_steps accum_steps grad_accum grad_accum_steps "
    "gradient_accumulation",
    "learning_rate": "lr init_lr",
    "weight_decay": "wd decay",
    "lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
    "warmup_steps": "warmup warmup_ratio warmup_epochs num_warmup_steps",
    "max_grad_norm": "grad_clip clip_grad gradient_clip gradient_clipping grad_norm max_norm",
    "label_smoothing_factor": "label_smoothing smoothing",
    "optim": "optimizer",
    "fp16": "half half_precision mixed_precision precision",
    "bf16": "half_precision mixed_precision precision bfloat16 fp16",
    "seed": "random_seed",
    "eval_strategy": "evaluation_strategy",
    "eval_steps": "evaluation_steps eval_every eval_interval",
    "save_steps": "save_every save_interval",
    "logging_steps": "log_steps log_every log_interval",
    "early_stopping_patience": "patience early_stopping",
    "generation_early_stopping": "early_stopping",
    "resume_from_checkpoint": "resume checkpoint",
    "overwrite_output_dir": "overwrite",
    "dataloader_num_workers": "num_workers workers",
    "use_cpu": "cpu no_cuda device",
    # The Hub
    "push_to_hub": "push",
    "hub_model_id": "repo_id repo repository hub_id hub_repo hub_repo_id hub_name",
    "hub_private_repo": "private hub_private",
    "hub_tag": "tag",
    # CapFilt
    "captioner_name_or_path": "captioner_model",
    "filter_name_or_path": "filter_model matcher",
    "filter_threshold": "threshold",
    "max_length": "generation_max_length max_new_tokens max_len",
    "min_length": "generation_min_length min_new_tokens min_len",
    "max_samples": "max_train_samples limit",
}
"""Other names of each key of any command."""

OTHER_NAMES: dict[str, list[str]] = defaultdict(list)
"""The keys that may be meant by an other name."""
for _key, _others in NAMES.items():
    for _other in _others.split():
        OTHER_NAMES[_other].append(_key)
