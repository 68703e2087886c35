"""Question answering: an image and a question in, a short answer out.

| module | what lives there |
|---|---|
| `accuracy.py` | VQAv2's accuracy and the way it reads answers |
| `modeling.py` | `BlipForAnswering`: the stock class with the original's loss; answers generated or ranked |
| `questions.py` | questions about drawn scenes, and their annotators |
| `data.py` | every source of questions becomes rows of `image`, `image_id`, `question_id`, `question`, `answers` |
| `collator.py` | rows to a batch |
| `trainer.py` | the loss over questions, the answering step and its scores |
| `pipeline.py` | `visual-question-answering` for transformers 5 |
| `task.py` | what the main job asks of this task |
"""
