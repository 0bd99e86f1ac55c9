"""What programs send to AUTOMATIC1111's API, rebuilt from their requests with words of our own."""

from typing import Any


def bodies(image: str, mask: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the program's name: the route, and a request of its.

    Args:
        image, mask: base64, of the same size.
    """
    return {
        "Open WebUI": ("txt2img", {
            "prompt": "a red apple", "batch_size": 1, "width": 64, "height": 64, "steps": 2, "negative_prompt": "",
        }),
        "LibreChat": ("txt2img", {
            "prompt": "a red apple", "negative_prompt": "blurred", "cfg_scale": 4.5, "steps": 2, "width": 64,
            "height": 64,
        }),
        "SillyTavern": ("txt2img", {
            "url": "http://127.0.0.1:1337", "auth": "a:SECRET", "prompt": "a red apple", "negative_prompt": "blurred",
            "sampler_name": "DPM++ 2M", "scheduler": "Automatic", "steps": 2, "cfg_scale": 7, "width": 64,
            "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1.5,
            "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 5,
            "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
            "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
            "do_not_save_grid": False, "do_not_save_samples": False,
        }),
        "SillyTavern for stable-diffusion.cpp": ("txt2img", {
            "url": "http://127.0.0.1:1337", "prompt": "a red apple", "negative_prompt": "", "sampler_name": "dpm++2mv2",
            "scheduler": "karras", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64, "seed": -1, "batch_size": 1,
            "clip_skip": -1,
        }),
        "text-generation-webui": ("txt2img", {
            "prompt": "a red apple", "seed": -1, "sampler_name": "DPM++ 2M Karras", "enable_hr": False,
            "hr_scale": "1.0", "hr_upscaler": "ESRGAN_4x", "denoising_strength": 0.5, "steps": 2, "cfg_scale": 7,
            "width": 64, "height": 64, "restore_faces": False, "override_settings_restore_afterwards": True,
            "negative_prompt": "blurred",
        }),
        "AI Render": ("img2img", {
            "prompt": "a red apple", "negative_prompt": "blurred", "seed": 5, "width": 64, "height": 64, "steps": 2,
            "cfg_scale": 7.0, "denoising_strength": 0.6, "sampler_index": "Restart", "init_images": [image],
            "image_similarity": 0.4, "cfg_scale_max": 35, "animated": False, "resize_mode": 0,
        }),
        "stable-gimpfusion": ("img2img", {
            "prompt": "a red apple", "negative_prompt": "", "seed": "-1", "steps": 2.0, "cfg_scale": 7.5, "width": 64.0,
            "height": 64.0, "sampler_index": "k_dpmpp_2m", "init_images": [image], "denoising_strength": 0.8,
            "batch_size": 1.0, "mask_blur": 4.0, "mask": mask, "inpainting_fill": 1, "inpaint_full_res": True,
            "inpaint_full_res_padding": 16.0, "alwayson_scripts": {},
        }),
        "gimp-stable-boy": ("img2img", {
            "prompt": "a red apple", "negative_prompt": "", "seed": -1, "steps": 2, "cfg_scale": 7.5, "width": 64,
            "height": 64, "sampler_index": "Euler a", "init_images": [image], "denoising_strength": 0.8,
            "mask": mask, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": False, "batch_size": 1,
            "inpaint_full_res_padding": 32, "inpainting_mask_invert": 1, "resize_mode": 0, "include_init_images": False,
        }),
        "stable.art": ("img2img", {
            "prompt": "a red apple", "negative_prompt": "", "sampler_index": "Euler a", "steps": 2, "cfg_scale": 7,
            "width": 64, "height": 64, "seed": -1, "batch_size": 2, "n_iter": 1, "init_images": [image], "mask": mask,
            "denoising_strength": 0.75, "inpaint_full_res": True, "inpaint_full_res_padding": 32, "inpainting_fill": 1,
            "inpainting_mask_invert": 0, "mask_blur": 4, "resize_mode": 1, "styles": [],
        }),
        "Auto-Photoshop": ("img2img", {
            "prompt": "a red apple", "negative_prompt": "", "steps": 2, "sampler_index": "DPM++ 2M Karras",
            "cfg_scale": 7, "seed": "-1", "width": 64, "height": 64, "denoising_strength": 0.7, "batch_size": 1,
            "n_iter": 1, "init_images": [image], "mask": mask, "mask_blur": 4, "mask_expansion": 0,
            "inpaint_full_res": False, "inpaint_full_res_padding": 32, "inpainting_fill": 1,
            "inpainting_mask_invert": False, "enable_hr": False, "restore_faces": False, "clip_skip": 1,
            "selection_info": {"left": 0, "top": 0, "right": 64, "bottom": 64}, "mode": "inpaint",
            "original_prompt": "a red apple", "original_negative_prompt": "", "use_sharp_mask": False,
            "use_prompt_shortcut": False, "prompt_shortcut_ui_dict": {}, "uniqueDocumentId": "1", "script_args": [],
            "alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "module": "", "model": ""}]}},
        }),
    }  # fmt: skip
