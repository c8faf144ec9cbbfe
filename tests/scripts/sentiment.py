"""Tells kinds of sentences of different lengths apart, with a packed GRU both ways."""

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader


class Net(nn.Module):
    def __init__(self, words, classes):
        super().__init__()
        self.embedding = nn.Embedding(words, 64, padding_idx=0)
        self.rnn = nn.GRU(64, 96, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(192, classes)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embedding(x), lengths, batch_first=True, enforce_sorted=False)
        _, hidden = self.rnn(packed)
        return self.fc(torch.cat([hidden[-2], hidden[-1]], 1))


def collate(batch):
    sentences, labels = zip(*batch, strict=True)
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    return pad_sequence(sentences, batch_first=True), lengths, torch.tensor(labels)


generator = torch.Generator().manual_seed(0)
lengths = torch.randint(5, 60, (256,), generator=generator).tolist()
data = [(torch.randint(1, 500, (length,), generator=generator), i % 4) for i, length in enumerate(lengths)]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = Net(500, 4).to(device)
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9)
for epoch in range(3):
    for x, lengths, y in DataLoader(data, batch_size=32, collate_fn=collate, pin_memory=True):
        loss = nn.functional.cross_entropy(model(x.to(device), lengths), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        print(epoch, loss.item())
