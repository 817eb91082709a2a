-- +goose Up
CREATE TABLE accounts (owner text PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts VALUES ('alice', 100), ('bob', 200);

-- +goose Down
DROP TABLE accounts;
