// Several clients of node-postgres share few servers: each must get its own
// rows, in whatever way it asks.
'use strict'
const assert = require('assert')
const { Client } = require('pg')

const [connectionString, clients, rounds] = [process.argv[2], +process.argv[3], +process.argv[4]]

async function run(nonce) {
  const client = new Client({ connectionString })
  await client.connect()
  const mine = (result) => {
    assert.strictEqual(result.rows.length, 1)
    assert.strictEqual(result.rows[0].who, nonce)
  }
  for (let i = 0; i < rounds; i++) {
    mine(await client.query(`select '${nonce}' as who`)) // simple
    mine(await client.query('select $1::text as who, $2::int as n', [nonce, i])) // unnamed
    mine(await client.query({ name: 'own', text: `select '${nonce}' as who, $1::int as n`, values: [i] })) // named
    await client.query('begin')
    mine(await client.query({ name: 'insert', text: 'insert into post (who, n) values ($1, $2) returning who', values: [nonce, i] }))
    for (const n of [1, 2, 3]) {
      mine(await client.query({ name: 'own' + n, text: `select '${nonce}' as who, $1::int as n`, values: [n] }))
    }
    await client.query(i % 2 ? 'commit' : 'rollback')
    await assert.rejects(client.query({ name: 'bad' + (i % 3), text: `select '${nonce}' as who, 1 / $1::int`, values: [0] }), { code: '22012' })
  }
  mine(await client.query('select min(who) as who from post where who = $1 having count(*) = $2', [nonce, Math.floor(rounds / 2)]))
  await client.end()
}

Promise.all(Array.from({ length: clients }, (_, i) => run('client ' + i)))
  .then(() => console.log('done'))
  .catch((err) => { console.error(err); process.exit(1) })
