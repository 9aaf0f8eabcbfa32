package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/client/clienttest"
)

// example opens a client to a cluster in memory. Programs open theirs with the
// addresses of their nodes, for example "127.0.0.1:7001".
func example() (context.Context, *client.Client, func()) {
	ctx := context.Background()
	s, err := clienttest.New(3)
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.Open(ctx, s.Endpoints())
	if err != nil {
		log.Fatal(err)
	}
	return ctx, c, func() {
		if err := c.Close(); err != nil {
			log.Print(err)
		}
		s.Close()
	}
}

func ExampleOpen() {
	s, err := clienttest.New(3) // stands for a running cluster
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	c, err := client.Open(context.Background(), s.Endpoints())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("open")
	if err := c.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: open
}

func ExampleClient_Put() {
	ctx, c, done := example()
	defer done()
	if _, err := c.Put(ctx, []byte("user/7"), []byte("Ada")); err != nil {
		log.Fatal(err)
	}
	r, err := c.Get(ctx, []byte("user/7"))
	fmt.Printf("%s %v\n", r.Value, err)
	// Output: Ada <nil>
}

func ExampleClient_Get() {
	ctx, c, done := example()
	defer done()
	_, err := c.Get(ctx, []byte("user/8"))
	fmt.Println(err)
	fmt.Println(errors.Is(err, client.ErrNotFound))
	// Output:
	// get "user/8": not found
	// true
}

func ExampleClient_Delete() {
	ctx, c, done := example()
	defer done()
	if _, err := c.Put(ctx, []byte("k"), []byte("v")); err != nil {
		log.Fatal(err)
	}
	if _, err := c.Delete(ctx, []byte("k")); err != nil {
		log.Fatal(err)
	}
	_, err := c.Get(ctx, []byte("k"))
	fmt.Println(err)
	// Output: get "k": not found
}

func ExampleClient_CompareAndSwap() {
	ctx, c, done := example()
	defer done()
	key := []byte("leader")
	_, err := c.CompareAndSwap(ctx, key, nil, []byte("me"), client.IfAbsent())
	fmt.Println(err)
	_, err = c.CompareAndSwap(ctx, key, nil, []byte("you"), client.IfAbsent())
	if conflict, ok := errors.AsType[*client.ConflictError](err); ok {
		fmt.Printf("taken by %s\n", conflict.Value)
	}
	// Output:
	// <nil>
	// taken by me
}

func ExampleClient_Scan() {
	ctx, c, done := example()
	defer done()
	for _, name := range []string{"Ada", "Grace", "Edsger"} {
		if _, err := c.Put(ctx, []byte("user/"+name), []byte(name)); err != nil {
			log.Fatal(err)
		}
	}
	for row, err := range c.Scan(ctx, []byte("user/"), []byte("user0"), client.WithLimit(2)) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s = %s\n", row.Key, row.Value)
	}
	// Output:
	// user/Ada = Ada
	// user/Edsger = Edsger
}

func ExampleClient_DeleteRange() {
	ctx, c, done := example()
	defer done()
	for _, key := range []string{"a/1", "a/2", "b/1"} {
		if _, err := c.Put(ctx, []byte(key), nil); err != nil {
			log.Fatal(err)
		}
	}
	n, err := c.DeleteRange(ctx, []byte("a/"), []byte("a0"))
	fmt.Println(n, err)
	// Output: 2 <nil>
}

func ExampleClient_Batch() {
	ctx, c, done := example()
	defer done()
	results := c.Batch(ctx, []client.Op{
		client.PutOp([]byte("x"), []byte("1")),
		client.PutOp([]byte("y"), []byte("2")),
		client.GetOp([]byte("z")),
	})
	for _, r := range results {
		fmt.Println(r.Err)
	}
	// Output:
	// <nil>
	// <nil>
	// get "z": not found
}

func ExampleClient_Atomic() {
	ctx, c, done := example()
	defer done()
	_, err := c.Atomic(ctx, []client.Op{
		client.PutOp([]byte("order/1"), []byte("paid")),
		client.PutOp([]byte("order/1/log"), []byte("created"), client.IfAbsent()),
	})
	fmt.Println(err)
	// Output: <nil>
}
