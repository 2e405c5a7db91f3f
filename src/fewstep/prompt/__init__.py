r"""What is written in a prompt besides the words: the notation of AUTOMATIC1111's web interface, as people share it.

| written                       | means                                                              | read in    |
|-------------------------------|--------------------------------------------------------------------|------------|
| `<lora:name:0.8>`             | with this LoRA                                                     | `tags`     |
| `a dog AND a cat :0.5`        | two prompts, composed                                              | `stages`   |
| `[from:to:when]`              | another text after `when` steps, or that share of them             | `edits`    |
| `[dog\|cat]`                  | one after the other, step by step                                  | `edits`    |
| `(word)`, `(word:1.3)`, `[word]` | counts more, 1.3 times as much, less                            | `emphasis` |
| `BREAK`                       | what follows is read by itself                                     | `emphasis` |
| `\(`                          | the character itself                                               | `emphasis` |

They are read in this order. Nothing here imports torch.
"""
