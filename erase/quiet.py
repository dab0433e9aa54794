"""The libraries' chatter kept out of the results."""


def quiet_libraries() -> None:
    """Keep the libraries' chatter out of the results."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
