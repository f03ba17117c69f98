"""The side files of folders in Hugging Face's layout."""
