"""A local stand-in for the audio models of Azure OpenAI and OpenAI, reached by URL.

It stands apart from the pipeline: real HTTP, real encoding, real time-outs. README.md says what is emulated.
"""
