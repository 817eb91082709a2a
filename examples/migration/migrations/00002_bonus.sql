-- +goose Up
UPDATE accounts SET balance = balance + 10; -- twice would be wrong

-- +goose Down
UPDATE accounts SET balance = balance - 10;
