"""llama.cpp behind the replica contract: a GGUF file is served as it lies, mapped, without PyTorch."""
