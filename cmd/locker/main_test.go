package main

import (
	"testing"

	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestMain(m *testing.M) { locktest.Main(m) }
